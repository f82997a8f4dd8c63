"""A test of a program that embeds volmig: no database, and storage that fails when told to."""

from __future__ import annotations

import pytest

from volmig import Engine, conf, errors
from volmig.testing.memory_store import MemoryStore


def test_a_full_destination_leaves_the_volume_where_it_was() -> None:
    config = conf.load(
        [],
        overrides={
            "DEFAULT": {"enabled_backends": ["left", "right"], "host": "here"},
            "left": {"volume_driver": "fake", "fake_pools": ["left"]},
            "right": {
                "volume_driver": "fake",
                "fake_pools": ["right"],
                "fake_faults": ["create_volume:fail=disk-full"],
            },
        },
    )
    with Engine(config, store=MemoryStore()) as engine:
        volume = engine.create_volume(host="here@left#left", size_bytes=1024**2)
        with pytest.raises(errors.DiskFull):
            engine.migrate(volume.id, "here@right#right").result()
        after = engine.show_volume(volume.id)
        assert after.host == volume.host
        assert after.status == "available"
        assert after.migration_status == "error"
