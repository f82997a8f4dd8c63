"""Where a logical volume lies in its volume group, and what is being moved there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from volmig.drivers.lvm.commands import Commands

_FIELDS: Final = (
    *("lv_name", "lv_role", "segtype", "seg_start_pe", "seg_pe_ranges", "move_pv", "lv_parent", "copy_percent"),
)
_MOVABLE: Final = frozenset({"linear", "striped"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Extents:
    """Some extents of a physical volume, one after the other."""

    pv: str
    """The physical volume's device."""
    first: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A part of a logical volume."""

    start: int
    """Which extent of the volume it begins with."""
    places: tuple[Extents, ...]
    """Where it lies: in one place, or in several when it is striped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveUnderWay:
    """A ``pvmove`` that has begun and whose outcome is not in the metadata yet, whether somebody waits for it or not.

    LVM keeps it as a hidden mirror, which the kernel fills; it becomes the new place when a program of LVM's looks
    again, and is taken away by ``pvmove --abort``.
    """

    name: str
    """The hidden volume, such as ``pvmove0``."""
    source: str
    """The physical volume that is being emptied; each has one such move at most."""
    targets: tuple[str, ...]
    """The physical volumes that are filled."""
    volumes: tuple[str, ...]
    """The logical volumes of which parts are moved."""
    percent: str
    """How far it is, in LVM's words."""
    filled: tuple[Extents, ...] = ()
    """What is being filled, which is free again when the move is taken back."""

    def is_of(self, volume: str, targets: Collection[str]) -> bool:
        """Whether it moves this volume and no other, to no other places."""
        return self.volumes == (volume,) and set(self.targets) <= set(targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a logical volume lies, by extents."""

    extents: Mapping[str, int]
    """How many of its extents are on each physical volume; those that are being moved count where they come from."""
    moves: tuple[MoveUnderWay, ...] = ()
    """All that is being moved in the volume group, of this volume and of others."""
    objections: tuple[str, ...] = field(default=())
    """Why its parts cannot be moved one by one; empty when they can."""
    segments: tuple[Segment, ...] = ()
    """Its parts in their order, without those that are being moved."""

    def on(self, pvs: Collection[str]) -> int:
        """Return how many of its extents are on these physical volumes."""
        return sum(count for pv, count in self.extents.items() if pv in pvs)

    def outside(self, pvs: Collection[str]) -> tuple[str, ...]:
        """Return on which other physical volumes it has extents, in order."""
        return tuple(pv for pv in sorted(self.extents) if pv not in pvs)

    def places(self, pvs: Collection[str], *, within: int | None = None) -> tuple[Extents, ...]:
        """Return which extents of these physical volumes it has, without those that are being moved.

        :param within: only of so many extents from its beginning; of a part that is striped, all of it.
        """
        found: list[Extents] = []
        for segment in self.segments:
            left = None if within is None else within - segment.start
            for place in segment.places if left is None or left > 0 else ():
                is_cut = left is not None and len(segment.places) == 1
                count = min(place.count, left) if is_cut and left is not None else place.count
                found += [Extents(pv=place.pv, first=place.first, count=count)] if place.pv in pvs else []
        return tuple(found)

    def moves_of(self, volume: str) -> tuple[MoveUnderWay, ...]:
        """Return the moves that parts of a volume are in."""
        return tuple(move for move in self.moves if volume in move.volumes)


def read_layout(commands: Commands, vg: str, lv: str) -> Layout | None:
    """Return where a logical volume lies, from one report of LVM's; None when there is no such volume.

    :raises volmig.drivers.lvm.commands.CommandFailed: when the volume group cannot be read.
    """
    rows = [_Row.of(row) for row in commands.report("lvs", _FIELDS, "-a", vg)]
    own = [row for row in rows if row.name == lv]
    if not own:
        return None
    moves = {move.name: move for move in _moves(rows)}
    extents: dict[str, int] = {}
    objections: list[str] = []
    segments: list[Segment] = []
    for row in own:
        if row.segtype not in _MOVABLE:
            objections.append(f"a part of it is {row.segtype}")
        if row.roles & {"origin", "snapshot"}:
            objections.append("it has snapshots, or is one")
        for place in row.ranges:
            pv = moves[place.pv].source if place.pv in moves else place.pv
            extents[pv] = extents.get(pv, 0) + place.count
        if not any(place.pv in moves for place in row.ranges):
            segments.append(Segment(start=row.start, places=row.ranges))
    return Layout(
        extents=extents,
        moves=tuple(moves.values()),
        objections=tuple(dict.fromkeys(objections)),
        segments=tuple(sorted(segments, key=lambda segment: segment.start)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A segment as LVM reports it."""

    name: str
    roles: frozenset[str]
    segtype: str
    start: int
    ranges: tuple[Extents, ...]
    move_pv: str
    parent: str
    percent: str

    @classmethod
    def of(cls, row: Mapping[str, str]) -> _Row:
        return cls(
            name=_bare(row["lv_name"]),
            roles=frozenset(row["lv_role"].split(",")),
            segtype=row["segtype"],
            start=int(row["seg_start_pe"] or 0),
            ranges=tuple(_ranges(row["seg_pe_ranges"].replace(",", " ").split())),
            move_pv=row["move_pv"],
            parent=_bare(row["lv_parent"]),
            percent=row["copy_percent"],
        )


def _ranges(words: Sequence[str]) -> Iterator[Extents]:
    """Yield the extents of each ``/dev/sda:0-11``; what stands for a device can also be an internal volume."""
    for word in words:
        device, _, numbers = word.rpartition(":")
        first, _, last = numbers.partition("-")
        yield Extents(pv=_bare(device), first=int(first), count=int(last) - int(first) + 1)


def _moves(rows: Sequence[_Row]) -> Iterator[MoveUnderWay]:
    names = {row.name: row for row in rows if row.move_pv}
    for name, row in names.items():
        images = [each for each in rows if each.parent == name]
        filled = [place for image in images for place in image.ranges if place.pv != row.move_pv]
        users = {each.name for each in rows if each.parent != name and name in {place.pv for place in each.ranges}}
        yield MoveUnderWay(
            name=name,
            source=row.move_pv,
            targets=tuple(sorted({place.pv for place in filled})),
            volumes=tuple(sorted(users)),
            percent=row.percent,
            filled=tuple(filled),
        )


def _bare(name: str) -> str:
    return name.strip("[]")
