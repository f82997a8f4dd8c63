"""What a move of a volume leaves behind: the extents that it had, with its data in them.

Before a move begins, tags of LVM's on the volume tell which extents it will leave: ``volmig-leaves-<uuid of the
physical volume>-<first>-<count>.<random>``; and before one is taken back, which it has filled. When the volume is at
rest, those of them that are free are given to a volume of the driver's own, ``clearing-<uuid of the volume>``. It is
cleared, as any other is that is deleted, and removed; then the tags are taken away. Whoever is killed in between has
left enough for the next one to go on.

LVM gives an extent to one volume only: what is cleared through a volume of the driver's own can be nobody else's. What
others have been given meanwhile is theirs; it is not touched, and told of in the log.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from volmig import errors
from volmig.drivers.lvm import devices, names, reports
from volmig.drivers.lvm.clearing import Clearing
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.connecting import is_still_there, without_device
from volmig.drivers.lvm.devices import NotThatVolume
from volmig.drivers.lvm.group import Group, is_for_room, is_in_use
from volmig.drivers.lvm.layouts import Extents, read_layout
from volmig.drivers.lvm.reports import LogicalVolume, LvKind, PhysicalSegment

LOG = logging.getLogger(__name__)

_LEAVES: Final = re.compile(
    r"volmig-leaves-(?P<pv>[A-Za-z0-9-]{1,64})-(?P<first>\d{1,10})-(?P<count>\d{1,10})\.[0-9a-f]{8}"
)
"""No two moves have a tag in common: who clears what one has left must not take the next one's record away."""
_CLEARED: Final = re.compile(r"volmig-cleared-(?P<bytes>\d{1,20})")
"""Tag of a volume through which is cleared: how much of it is, from its beginning."""
_OWN: Final = "volmig-clearing"
"""Tag of a volume through which is cleared; a name alone could be anybody's."""
_ATTEMPTS: Final = 3
_TIMES: Final = 6
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """A tag: some extents that the volume has left, or would leave."""

    pv_uuid: str
    first: int
    count: int

    def share(self, segment: PhysicalSegment) -> Extents | None:
        """Return the part of a segment that is on record."""
        first = max(self.first, segment.first)
        end = min(self.first + self.count, segment.first + segment.count)
        if segment.pv_uuid != self.pv_uuid or end <= first:
            return None
        return Extents(pv=segment.pv, first=first, count=end - first)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leavings:
    """Keeps record of what volumes of one group leave behind, and clears it."""

    group: Group

    # --- keeping record -----------------------------------------------------------------------

    @property
    def within(self) -> int | None:
        """Of how many extents from a volume's beginning ``volume_clear`` speaks; None for all of it."""
        size_bytes = self.group.settings.clear_size_bytes
        if not size_bytes:
            return None
        wanted = Clearing(group=self.group).length(max(size_bytes, 2**62))
        return -(-wanted // self.group.verified().extent_bytes)

    def record(self, lv: LogicalVolume, extents: Sequence[Extents]) -> None:
        """Keep record of extents that are about to become free, unless nothing is to be cleared.

        :raises volmig.drivers.lvm.commands.CommandFailed: when it cannot be kept, and the move must not be made.
        """
        if self.group.settings.clear == "none" or not extents:
            return
        uuids = {pv.name: pv.uuid for pv in self.group.physical_volumes()}
        known = [each for each in dict.fromkeys(extents) if each.pv in uuids]
        nonce = secrets.token_hex(4)
        self._tag(lv, add=[f"volmig-leaves-{uuids[each.pv]}-{each.first}-{each.count}.{nonce}" for each in known])

    def _tag(self, lv: LogicalVolume, *, add: Iterable[str] = (), take: Iterable[str] = ()) -> None:
        """Add tags and take others away, in one change of LVM's metadata."""
        words = [word for tag in add for word in ("--addtag", tag)] + [
            word for tag in take for word in ("--deltag", tag)
        ]
        if words:
            which = f'lv_name="{names.lv_name(lv.name)}" && lv_uuid="{lv.uuid}"'
            self.group.commands.run("lvchange", "-q", "-y", *words, "-S", which, self.group.vg)

    # --- clearing -----------------------------------------------------------------------------

    def settle(self, lv: LogicalVolume, *, patient: bool = True, at_rest: bool = False) -> bool:
        """Clear what moves of a volume have left, and forget it; change nothing while one is under way.

        What the volume has itself, since a move was taken back, is forgotten and not cleared.

        :param patient: wait for others that are clearing it; else leave it to them.
        :param at_rest: change nothing either when the volume has something itself that is on record: a move may be
            about to begin, or to go on, or to be taken back, for which the room may be needed.
        :returns: False when something is still to be cleared, by whoever is at it or later.
        :raises volmig.drivers.lvm.commands.CommandFailed: when it could not be cleared; it is still on record.
        :raises volmig.errors.StorageBusy: likewise, when a device is not there or is held open.
        """
        now = self._again(lv)
        records = {} if now is None else _records(now.tags)
        if now is None or not records:
            return True
        layout = read_layout(self.group.commands, self.group.vg, now.name)
        if layout is None or layout.moves_of(now.name):
            return False
        own = self._segments(now.name)
        if at_rest and _shares(records.values(), own):
            return False
        # First, and by itself: what follows can fail, and the next start leaves alone what looks like a move.
        held = [tag for tag, record in records.items() if _size(_shares([record], own)) == record.count]
        self._tag(now, take=held)
        records = {tag: record for tag, record in records.items() if tag not in held}
        closed = {pv.uuid for pv in self.group.physical_volumes() if not pv.is_allocatable}
        settled = {tag: record for tag, record in records.items() if record.pv_uuid not in closed}
        if len(settled) < len(records):
            text = "what %s has left is not cleared where physical volumes take nothing (pvchange --allocatable n)"
            LOG.warning(text, lv.name, extra={"lv": lv.name})
        if not self._clear_free(now, settled.values(), patient=patient):
            return False
        self._tag(now, take=settled)
        return True

    def are_there(self) -> bool:
        """Say whether anything is on record, or was left by somebody who has cleared."""
        return any(_is_own(lv) or _records(lv.tags) for lv in self.group.view().volumes)

    def settle_all(self) -> None:
        """Clear whatever moves of volumes have left in the group, and that nobody else is at.

        What fails does not keep the rest; it is told in the log, and still on record.
        """
        for lv in self.group.view().volumes:
            if lv.kind is LvKind.THICK and _records(lv.tags):
                self._try(lv, partial(self.settle, lv, patient=False, at_rest=True))
        view = self.group.view()
        for lv in filter(_is_own, view.volumes):
            self._try(lv, partial(self._finish, lv, view.group.uuid, patient=False))

    def _try(self, lv: LogicalVolume, work: Callable[[], object]) -> None:
        try:
            work()
        except (CommandFailed, errors.VolmigError, OSError) as error:
            LOG.warning("%s: what was left is not cleared yet: %s", lv.name, error, extra={"lv": lv.name})

    def _clear_free(self, lv: LogicalVolume, records: Collection[_Record], *, patient: bool) -> bool:
        """Clear what is free of all that is on record; return False when somebody else is at it."""
        name = names.clearing_name(lv.uuid)
        cleared: list[PhysicalSegment] = []
        for attempt in range(1, _ATTEMPTS + 1):
            view = self.group.view(name)
            left = view.get(name)
            if left is not None:
                cleared += self._segments(name)
                if not self._finish(left, view.group.uuid, patient=patient):
                    return False
            free = _without(_shares(records, self._segments("")), cleared)
            if not free:
                break
            try:
                self._make(name, free)
            except CommandFailed as exc:
                # Others have been given some of it since it was looked at, or have made the same volume.
                if attempt < _ATTEMPTS and (is_for_room(exc) or self.group.view(name).get(name) is not None):
                    continue
                raise
            view = self.group.view(name)
            made = view.get(name)
            if made is not None:
                self._require_layout(made, free)
                if not self._finish(made, view.group.uuid, patient=patient):
                    return False
            break
        self._tell_of_others(lv, records)
        return True

    def _make(self, name: str, extents: Sequence[Extents]) -> None:
        places = [f"{each.pv}:{each.first}-{each.first + each.count - 1}" for each in extents]
        # LVM wipes what udev would else look at: a file system, for instance, that has moved and is in use elsewhere
        # under the same UUID. And no start of the machine activates what is left of it.
        self.group.commands.run(
            *("lvcreate", "-q", "-y", "-Wy", "-Zy", "--setactivationskip", "y", "--ignoreactivationskip"),
            # The group's own policy may be one that scattered extents cannot fit.
            *(
                "--type",
                "linear",
                "--alloc",
                "normal",
                "--addtag",
                _OWN,
                "--extents",
                str(sum(each.count for each in extents)),
            ),
            *("--name", name, self.group.vg, *places),
        )

    def _require_layout(self, made: LogicalVolume, extents: Sequence[Extents]) -> None:
        """Refuse to clear anything but what was asked for."""
        layout = read_layout(self.group.commands, self.group.vg, made.name)
        given = [place for segment in layout.segments for place in segment.places] if layout is not None else []
        if not all(any(_holds(wanted, place) for wanted in extents) for place in given):
            self.group.remove(made)
            raise errors.InternalError(reason=f"LVM has made {made.name} of other extents than it was told to")

    def _finish(self, lv: LogicalVolume, vg_uuid: str, *, patient: bool) -> bool:
        """Clear a volume of the driver's own and remove it; return False when somebody else is at it."""
        if not _is_own(lv):
            raise errors.ObjectNameTaken(
                backend=self.group.backend,
                location=self.group.path(lv.name),
                holder=f"a {lv.kind.value} volume that is not of volmig's making",
            )
        if self._is_given_up(lv):
            return self._removed(lv)
        try:
            self.group.activate(lv)
            path = self.group.path(lv.name)
            with self.group.devices.opened(path, vg_uuid=vg_uuid, lv_uuid=lv.uuid) as fd:
                if not patient and devices.is_locked(fd):
                    return False
                with devices.locked(fd):
                    now = self._again(lv)
                    if now is None:
                        return True  # somebody else has cleared it and removed it
                    self._clear(now, vg_uuid)
        except NotThatVolume as exc:
            if is_still_there(self.group, lv):
                raise without_device(self.group, lv, exc) from exc
            return True
        return self._removed(lv)

    def _is_given_up(self, lv: LogicalVolume) -> bool:
        """Say whether what a volume of the driver's own holds is given up, since its disk is not to be used."""
        closed = {pv.name for pv in self.group.physical_volumes() if not pv.is_allocatable}
        if closed.isdisjoint(lv.devices):
            return False
        text = "%s is given up without being cleared: it is on %s, which are to take nothing (pvchange --allocatable n)"
        LOG.warning(text, lv.name, ", ".join(sorted(closed.intersection(lv.devices))), extra={"lv": lv.name})
        return True

    def _clear(self, lv: LogicalVolume, vg_uuid: str) -> None:
        """Clear what earlier calls have not, and note how far it is: it may take longer than a process lives."""
        noted = {tag: int(match["bytes"]) for tag in lv.tags if (match := _CLEARED.fullmatch(tag)) is not None}
        begin = max(noted.values(), default=0)
        if begin >= lv.size_bytes:
            return

        def note(cleared: int) -> None:
            tag = f"volmig-cleared-{cleared}"
            self._tag(lv, add=[tag], take=list(noted))
            noted.clear()
            noted[tag] = cleared

        Clearing(group=self.group).clear(lv, vg_uuid, whole=True, begin=begin, note=note)
        note(lv.size_bytes)

    def _removed(self, lv: LogicalVolume) -> bool:
        def is_removed() -> bool:
            try:
                self.group.remove(lv)
            except CommandFailed as exc:
                if not is_in_use(exc):
                    raise
                return False
            return True

        return devices.patiently(is_removed, times=_TIMES, pause_seconds=_PAUSE_SECONDS, pause=self.group.pause)

    def _tell_of_others(self, lv: LogicalVolume, records: Collection[_Record]) -> None:
        used = [segment for segment in self._segments() if segment.lv not in {"", lv.name}]
        if others := sorted({segment.lv for segment in used if _shares(records, [segment])}):
            LOG.warning(
                "what %s has left was not cleared before others were given it: %s of %s may show old data",
                lv.name,
                ", ".join(others),
                self.group.vg,
                extra={"lv": lv.name},
            )

    # --- looking ------------------------------------------------------------------------------

    def _segments(self, *of: str) -> list[PhysicalSegment]:
        """Return what the group's extents are used for, or only those of these volumes; the empty name is for free."""
        found = reports.physical_segments(self.group.commands, self.group.vg)
        return [segment for segment in found if not of or segment.lv in of]

    def _again(self, lv: LogicalVolume) -> LogicalVolume | None:
        now = self.group.view(lv.name).get(lv.name)
        return now if now is not None and now.uuid == lv.uuid else None


def _is_own(lv: LogicalVolume) -> bool:
    return names.is_clearing(lv.name) and _OWN in lv.tags and lv.kind is LvKind.THICK and not lv.has_snapshots


def _records(tags: Iterable[str]) -> dict[str, _Record]:
    """Return what tags tell, by tag."""
    matches = ((tag, _LEAVES.fullmatch(tag)) for tag in tags)
    return {
        tag: _Record(pv_uuid=match["pv"], first=int(match["first"]), count=int(match["count"]))
        for tag, match in matches
        if match is not None
    }


def _shares(records: Iterable[_Record], segments: Iterable[PhysicalSegment]) -> list[Extents]:
    """Return what of the segments is on record, each extent once."""
    known = list(records)
    found: list[Extents] = []
    for segment in segments:
        shares = sorted(
            (share for record in known if (share := record.share(segment)) is not None), key=lambda share: share.first
        )
        end = segment.first
        for share in shares:
            first, last = max(share.first, end), share.first + share.count
            if first < last:
                found.append(Extents(pv=segment.pv, first=first, count=last - first))
                end = last
    return found


def _without(extents: Iterable[Extents], cleared: Iterable[PhysicalSegment]) -> list[Extents]:
    """Return what of the extents an earlier call has not cleared."""
    left = list(extents)
    for segment in cleared:
        end = segment.first + segment.count
        parts = []
        for each in left:
            last = each.first + each.count
            if each.pv != segment.pv or last <= segment.first or end <= each.first:
                parts.append(each)
                continue
            if each.first < segment.first:
                parts.append(Extents(pv=each.pv, first=each.first, count=segment.first - each.first))
            if end < last:
                parts.append(Extents(pv=each.pv, first=end, count=last - end))
        left = parts
    return left


def _size(extents: Iterable[Extents]) -> int:
    return sum(each.count for each in extents)


def _holds(outer: Extents, inner: Extents) -> bool:
    is_after = outer.first <= inner.first
    return outer.pv == inner.pv and is_after and inner.first + inner.count <= outer.first + outer.count
