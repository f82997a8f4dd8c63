"""Exports as the driver tells of them: by the volume that the user knows."""

from __future__ import annotations

from typing import Any, cast

import pytest

from volmig import errors
from volmig.drivers.lvm.connecting import Connecting
from volmig.model import Volume


class Exporter:
    """Has one export, which a host uses."""

    def __init__(self) -> None:
        self.used_by = "iqn.a"

    def exports(self) -> list[str]:
        return ["object"]

    def remove(self, volume_id: str) -> None:
        assert volume_id == "object"
        if self.used_by:
            raise errors.VolumeInUse(volume=volume_id, users=self.used_by)


VOLUME = Volume(id="volume", name="v", size_bytes=1, host="here@b#p", name_id="object")


def connecting(exporter: Exporter | None) -> Connecting:
    return Connecting(group=cast(Any, None), host="here", exporter=cast(Any, exporter), always_export=False)


def test_whoever_uses_an_export_is_told_with_the_volume() -> None:
    exporter = Exporter()
    ours = connecting(exporter)
    with pytest.raises(errors.VolumeInUse, match=r"Volume volume is in use .*iqn\.a"):
        ours.remove(VOLUME)
    assert ours.exports() == ["object"]
    exporter.used_by = ""
    ours.remove(VOLUME)


def test_without_a_protocol_there_is_none() -> None:
    ours = connecting(None)
    ours.remove(VOLUME)
    assert list(ours.exports()) == []
