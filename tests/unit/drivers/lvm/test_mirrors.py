"""The sides of LVM's mirrors, compared: regular files stand in for the devices here."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from volmig.drivers.lvm import mirrors
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.mirrors import Leg, MirroredPart

SIZE = 9 * 1024 * 1024 + 4096
START = 1024 * 1024


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    data = random.Random(7).randbytes(SIZE)
    (tmp_path / "254:2").write_bytes(bytes(START) + data)
    (tmp_path / "254:3").write_bytes(data)
    return tmp_path


MIRROR = [
    MirroredPart(size_bytes=SIZE, legs=(Leg(device="254:2", offset_bytes=START), Leg(device="254:3", offset_bytes=0)))
]


def change(devices: Path, offset: int) -> None:
    with (devices / "254:3").open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def compare(devices: Path, pause=lambda _: None) -> int | None:
    return mirrors.first_difference(MIRROR, devices=devices, flags=0, pause=pause)


def test_sides_that_are_the_same(devices: Path) -> None:
    assert compare(devices) is None


@pytest.mark.parametrize("offset", [0, 4095, 4096, 4 * 1024 * 1024, SIZE - 1])
def test_one_bit_is_found(devices: Path, offset: int) -> None:
    change(devices, offset)
    assert compare(devices) == offset // 4096 * 4096


def test_what_is_written_meanwhile_is_no_difference(devices: Path) -> None:
    change(devices, 5_000_000)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            change(devices, 5_000_000)

    assert compare(devices, pause) is None
    assert len(pauses) == 3


def test_a_side_that_is_too_short_is_not_the_same(devices: Path) -> None:
    with (devices / "254:3").open("r+b") as file:
        file.truncate(SIZE - 1)
    assert compare(devices) == SIZE - 4096


def test_a_side_that_cannot_be_opened(devices: Path) -> None:
    (devices / "254:3").unlink()
    with pytest.raises(CommandFailed, match="254:3: No such file"):
        compare(devices)


def test_tables_are_read() -> None:
    table = "0 32768 mirror core 1 4096 2 254:2 0 254:3 2048\n32768 8 mirror core 2 4096 nosync 2 8:1 16 254:3 0\n"
    assert mirrors.parts(table) == [
        MirroredPart(
            size_bytes=16 * 1024 * 1024,
            legs=(Leg(device="254:2", offset_bytes=0), Leg(device="254:3", offset_bytes=START)),
        ),
        MirroredPart(size_bytes=4096, legs=(Leg(device="8:1", offset_bytes=8192), Leg(device="254:3", offset_bytes=0))),
    ]


@pytest.mark.parametrize(
    "table",
    [
        "0 32768 linear 7:0 2048",
        "0 32768 mirror core 1 4096 1 254:2 0",
        "0 32768 mirror core 1 4096 2 254:2 0 254:3",
        "0 x mirror core 1 4096 2 254:2 0 254:3 0",
        "nonsense",
    ],
)
def test_what_is_no_mirror_is_refused(table: str) -> None:
    with pytest.raises(CommandFailed, match="no table of a mirror"):
        mirrors.parts(table)
