"""The mirror by which LVM moves data: how far it is, and whether its two sides hold the same.

LVM makes the mirrors of ``pvmove`` without ``handle_errors``. As seen with Linux 6.1, the kernel then counts a part as
copied also when it could not be written, and the mirror's status says that both sides are alive. So what was copied is
compared with where it came from.
"""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from volmig.drivers.lvm.commands import CommandFailed

SECTOR_BYTES: Final = 512
_PART_BYTES: Final = 4 * 1024**2
_BLOCK_BYTES: Final = 4096
_AGAIN_SECONDS: Final = 0.05
_TIMES_AGAIN: Final = 200
_STATUS: Final = re.compile(r" mirror (?P<legs>\d+) (?P<rest>.*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One side of a mirrored part: a device, as ``254:3``, and where on it the part begins."""

    device: str
    offset_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MirroredPart:
    """A part of a mirror, with its sides: where it comes from first."""

    size_bytes: int
    legs: tuple[Leg, ...]


def status(text: str) -> tuple[bool, str]:
    """Read ``dmsetup status``: whether all parts are copied, and the letters that tell how the sides are (``A`` is
    alive).

    :raises volmig.drivers.lvm.commands.CommandFailed: when it is no mirror's.
    """
    is_whole, health = True, ""
    for found in map(_STATUS.search, text.splitlines()):
        if found is None:
            raise CommandFailed(("dmsetup", "status"), 0, f"this is no status of a mirror: {text!r}")
        words = found["rest"].split()[int(found["legs"]) :]
        done, _, total = words[0].partition("/")
        is_whole &= done == total
        health += words[2]
    return is_whole, health


def parts(table: str) -> list[MirroredPart]:
    """Read ``dmsetup table``. :raises volmig.drivers.lvm.commands.CommandFailed: when it is no mirror's."""
    return list(_parts(table))


def _parts(table: str) -> Iterator[MirroredPart]:
    for line in table.splitlines():
        words = line.split()
        try:
            _, length, kind, _, arguments = words[:5]
            sides = words[5 + int(arguments) :]
            count = int(sides[0])
            legs = tuple(
                Leg(device=device, offset_bytes=int(first) * SECTOR_BYTES)
                for device, first in zip(sides[1 : 2 * count + 1 : 2], sides[2 : 2 * count + 1 : 2], strict=True)
            )
            size = int(length) * SECTOR_BYTES
        except (ValueError, IndexError) as exc:
            raise _no_mirror(table) from exc
        if kind != "mirror" or len(legs) != count or count < 2:
            raise _no_mirror(table)
        yield MirroredPart(size_bytes=size, legs=legs)


def _no_mirror(table: str) -> CommandFailed:
    return CommandFailed(("dmsetup", "table"), 0, f"this is no table of a mirror: {table!r}")


def first_difference(
    mirror: Sequence[MirroredPart],
    *,
    devices: Path = Path("/dev/block"),
    flags: int = os.O_DIRECT,
    pause: Callable[[float], None] = time.sleep,
) -> int | None:
    """Compare the sides of a mirror that may be written to meanwhile; return where they differ, None where nowhere.

    A block that differs is read again for some seconds, since one side may have been written to and the other not yet.

    :returns: the offset of the first block in the mirror that stays different, or that cannot be read on each side.
    :raises volmig.drivers.lvm.commands.CommandFailed: when a side's device cannot be opened.
    """
    begin = 0
    for part in mirror:
        opened: list[int] = []
        try:
            for leg in part.legs:
                opened.append(_open(devices / leg.device, flags))
            offset = _difference(opened, part, pause)
        finally:
            for fd in opened:
                os.close(fd)
        if offset is not None:
            return begin + offset
        begin += part.size_bytes
    return None


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as exc:
        raise CommandFailed(("open", str(path)), exc.errno or 1, f"{path}: {exc.strerror}") from exc


def _difference(opened: Sequence[int], part: MirroredPart, pause: Callable[[float], None]) -> int | None:
    with mmap.mmap(-1, _PART_BYTES) as one, mmap.mmap(-1, _PART_BYTES) as other:
        for fd, leg in zip(opened[1:], part.legs[1:], strict=True):
            sides = ((opened[0], part.legs[0].offset_bytes, one), (fd, leg.offset_bytes, other))
            for start in range(0, part.size_bytes, _PART_BYTES):
                length = min(_PART_BYTES, part.size_bytes - start)
                if _same(sides, start, length):
                    continue
                for block in range(start, start + length, _BLOCK_BYTES):
                    if not _same_soon(sides, block, min(_BLOCK_BYTES, part.size_bytes - block), pause):
                        return block
    return None


_Side = tuple[int, int, mmap.mmap]


def _same_soon(sides: tuple[_Side, _Side], start: int, length: int, pause: Callable[[float], None]) -> bool:
    for attempt in range(_TIMES_AGAIN):
        if attempt:
            pause(_AGAIN_SECONDS)
        if _same(sides, start, length):
            return True
    return False


def _same(sides: tuple[_Side, _Side], start: int, length: int) -> bool:
    try:
        for fd, offset, buffer in sides:
            with memoryview(buffer)[:length] as view:
                if os.preadv(fd, [view], offset + start) != length:
                    return False
    except OSError:
        return False
    with memoryview(sides[0][2])[:length] as one, memoryview(sides[1][2])[:length] as other:
        return one == other
