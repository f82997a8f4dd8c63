"""The driver guide's example passes the conformance suite, loads as a plugin, and takes part in migrations."""

from __future__ import annotations

import os

from test_shelf_driver import TestShelfDriver

from volmig import Engine, conf
from volmig.drivers.loader import load_driver

__all__ = ["TestShelfDriver"]


def test_loads_by_its_path():
    assert load_driver("shelf_driver:ShelfDriver").cls.__name__ == "ShelfDriver"


def test_volume_moves_from_shelf_to_shelf_and_keeps_its_id(tmp_path):
    names = ("oak", "pine")
    backends = {}
    for name in names:
        (tmp_path / name).mkdir()
        backends[name] = {"volume_driver": "shelf_driver:ShelfDriver", "shelf_directory": str(tmp_path / name)}
    general = {"enabled_backends": list(names), "host": "h", "state_path": str(tmp_path / "state")}
    data = os.urandom(1024 * 1024 + 77)
    with Engine(conf.load([], overrides={"DEFAULT": general, **backends})) as engine:
        volume = engine.create_volume(host="h@oak#oak", size_bytes=len(data))
        (tmp_path / "oak" / f"volume-{volume.id}").write_bytes(data)
        moved = engine.migrate(volume.id, "h@pine#pine").result()
    assert (moved.host, moved.backend_id) == ("h@pine#pine", volume.id)
    assert list((tmp_path / "oak").iterdir()) == []
    assert [path.name for path in (tmp_path / "pine").iterdir()] == [f"volume-{volume.id}"]
    assert (tmp_path / "pine" / f"volume-{volume.id}").read_bytes() == data
