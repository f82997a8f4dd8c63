"""Moving a logical volume to other physical volumes of its volume group, while it may be in use.

``pvmove --atomic`` moves the extents of one volume off one physical volume: all of them change their place in one
commit of LVM's metadata, or none. A volume on several physical volumes takes one such move for each. What LVM 2.03.16
does around it, as seen:

* When the process of pvmove is killed the kernel goes on copying, and what is copied takes no effect until a program of
  LVM's looks again: any ``pvmove`` off the same physical volume, or the poller that ``vgchange --activate ay`` starts
  when the machine boots. ``pvmove --abort`` takes all of it back.
* Only one move can empty a physical volume at a time. A second ``pvmove`` off it forgets what it was asked, waits for
  the end of the first one, and succeeds. So its status says little, and the metadata is read after each.
* **pvmove succeeds although the new disk could not be written to.** It makes its mirror without ``handle_errors``: the
  kernel then logs "Write error during recovery", counts the region as copied, and pvmove gives the volume the new
  place, where data is missing. Not even the mirror's status tells of it.
* The volume may be open, active or not; it cannot be removed or enlarged meanwhile.

So pvmove is only let begin here, and ended by ``timeout`` while it waits for its first look. The copy is watched in the
mirror's status. When it is complete both sides are compared, and a second pvmove makes it take effect if they are the
same; else it is aborted. What happens to a write of the volume's users between that and the commit, a second or so,
cannot be seen; nor what LVM's own poller ends after a reboot.

:meth:`PhysicalMove.carry_out` goes on with a move that was interrupted. :meth:`PhysicalMove.settle` takes it back: it
is asked when a migration is undone, must answer in minutes, and aborting takes a moment while copying may take hours.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from volmig import errors
from volmig.drivers.lvm import mirrors
from volmig.drivers.lvm.commands import CommandFailed, Commands
from volmig.drivers.lvm.layouts import Extents, Layout, MoveUnderWay, read_layout
from volmig.drivers.lvm.pvmove import BEGIN_SECONDS, TIMED_OUT, Pvmove, pvmove_at_work
from volmig.drivers.lvm.reports import physical_volumes, volume_group
from volmig.model import Volume

LOG = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 2.0
"""How often it is looked how far a move is."""

_STALLED_SECONDS: Final = 120.0
"""How long a move of somebody else's may stay where it is before it is no longer waited for."""

_PROCESS_SECONDS: Final = 120.0
"""How long a pvmove that a dead worker has left may take to show what it does."""

_JOINED_TIMES: Final = 100
"""How often a pvmove may end well and have moved nothing, since it has waited for another one."""

_NO_ROOM: Final = re.compile(r"insufficient (?:free space|suitable)|unable to allocate|not enough", re.IGNORECASE)


class PhysicalMove:
    """Moves one logical volume from a set of physical volumes to another one of the same volume group."""

    def __init__(
        self,
        commands: Commands,
        *,
        volume: Volume,
        vg: str,
        lv: str,
        destination: str,
        source_pvs: Sequence[str],
        destination_pvs: Sequence[str],
        record: Callable[[Sequence[Extents]], None] = lambda _: None,
        within: int | None = None,
        at_work: Callable[[str, str], bool] = pvmove_at_work,
        compare: Callable[[Sequence[mirrors.MirroredPart]], int | None] = mirrors.first_difference,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep what is to be moved; touch nothing yet.

        :param volume: the volume, for errors.
        :param vg: volume group, a checked name.
        :param lv: logical volume, a checked name.
        :param destination: the destination pool's address, for errors.
        :param source_pvs: device paths of the source pool's physical volumes, as LVM reports them.
        :param destination_pvs: likewise of the destination pool.
        :param record: keeps record of extents that are about to become free, with the volume's data in them.
        :param within: of how many extents from the volume's beginning such a record is kept; None for all.
        :param at_work: says whether a pvmove of this volume runs.
        :param compare: says where the sides of a mirror differ.
        """
        self._commands = commands
        self._volume = volume
        self._vg = vg
        self._lv = lv
        self._destination = destination
        self._destination_pvs = tuple(destination_pvs)
        # What is in both sets is in the right place already, and need not be left.
        self._source_pvs = tuple(pv for pv in source_pvs if pv not in self._destination_pvs)
        self._record = record
        self._within = within
        self._program = Pvmove(commands=commands, vg=vg, lv=lv)
        self._at_work = at_work
        self._compare = compare
        self._pause = pause
        self._clock = clock

    def obstacle(self) -> str:
        """Say why pvmove cannot move this volume as one; empty when it can.

        It would leave the room of a snapshot's changes where it is. Parts of a RAID could be moved, but not so that all
        of them change their place at once, nor so that they stay on different disks.
        """
        return "; ".join(self._look().objections)

    def carry_out(self) -> None:
        """Move all of the volume to the destination's physical volumes, and return when it is there.

        Goes on with a move that was interrupted, and succeeds when everything is there already. When it fails, all of
        it is brought back first, as far as that is possible.

        :raises volmig.errors.VolumeObjectMissing: when there is no such logical volume.
        :raises volmig.errors.DiskFull: when the destination has no room; nothing was changed.
        :raises volmig.errors.BackendDown: when a physical volume is missing; nothing was changed.
        :raises volmig.errors.StorageBusy: when another move on the same physical volumes does not end.
        :raises volmig.errors.TransferFailed: when LVM could not do it.
        """
        self._await_others_processes()
        layout = self._look()
        if not layout.moves_of(self._lv) and not layout.outside(self._destination_pvs):
            return
        self._check_storage(layout)
        try:
            self._record(layout.places(layout.outside(self._destination_pvs), within=self._within))
            self._gather(self._destination_pvs)
        except CommandFailed as failed:
            self._bring_back(failed)
            raise self._as_error(failed, self._destination_pvs) from failed

    def settle(self) -> bool:
        """End a :meth:`carry_out` that nobody waits for any more, and say where the volume is.

        A move that is under way is aborted, which leaves its extents where they were. What earlier moves have brought
        to the destination, of a volume on several physical volumes, is moved back.

        :returns: True when all of it is at the destination, and False when none of it is.
        :raises volmig.errors.VolumeObjectMissing: when there is no such logical volume.
        :raises volmig.errors.StorageBusy: when somebody else moves it, or a process that does is not seen to end.
        :raises volmig.errors.TransferFailed: when it lies at both places, and could not be brought back.
        """
        try:
            layout = self._stop()
            if not layout.outside(self._destination_pvs):
                return True
            if layout.on(self._destination_pvs):
                self._return(layout)
        except CommandFailed as failed:
            raise self._as_error(failed, self._source_pvs) from failed
        return False

    # --- looking ------------------------------------------------------------------------------

    def _look(self) -> Layout:
        layout = read_layout(self._commands, self._vg, self._lv)
        if layout is None:
            raise errors.VolumeObjectMissing(volume=self._volume.id, location=f"{self._vg}/{self._lv}")
        return layout

    def _check_storage(self, layout: Layout) -> None:
        """Refuse what cannot succeed, before anything is changed."""
        if layout.objections:
            raise errors.UnsupportedOperation(
                backend=self._backend, operation=f"moving {self._lv} by pvmove ({'; '.join(layout.objections)})"
            )
        group = volume_group(self._commands, self._vg)
        if group is None:
            raise errors.BackendDown(backend=self._backend, reason=f"there is no volume group {self._vg}")
        if group.missing_pvs:
            reason = f"{group.missing_pvs} physical volume(s) of {self._vg} are missing, and LVM moves nothing then"
            raise errors.BackendDown(backend=self._backend, reason=reason)
        # What is under way has its room at the destination already.
        moving = {move.source for move in layout.moves_of(self._lv)}
        needed = layout.on([pv for pv in layout.outside(self._destination_pvs) if pv not in moving])
        free = sum(
            pv.free_bytes
            for pv in physical_volumes(self._commands, self._vg)
            if pv.name in self._destination_pvs and pv.is_allocatable
        )
        if needed * group.extent_bytes > free:
            raise self._disk_full(self._destination_pvs, free)

    @property
    def _backend(self) -> str:
        return self._volume.host

    # --- moving -------------------------------------------------------------------------------

    def _gather(self, targets: Sequence[str]) -> None:
        """Move everything to these physical volumes.

        :raises CommandFailed: when LVM fails, and has moved nothing more.
        """
        layout, idle = self._look(), 0
        while layout.outside(targets) or layout.moves_of(self._lv):
            source = self._next_source(layout, targets)
            failed = self._leave(source, targets)
            before, layout = layout, self._look()
            if _is_further(before, layout, targets):
                idle = 0
                continue
            if failed is not None:
                raise failed
            idle += 1
            if idle > _JOINED_TIMES:
                raise CommandFailed(("pvmove", source), 0, f"it ends well, and {self._lv} is still on {source}")

    def _next_source(self, layout: Layout, targets: Sequence[str]) -> str:
        """Return which physical volume is to be left next, when nobody else is at work on it."""
        under_way = layout.moves_of(self._lv)
        for move in under_way:
            if not move.is_of(self._lv, targets) and move.is_of(self._lv, self._source_pvs):
                # On its way back, since an earlier attempt has failed.
                self._abort(move)
                return move.source
        source = under_way[0].source if under_way else layout.outside(targets)[0]
        self._await_others(source, targets)
        return source

    def _leave(self, source: str, targets: Sequence[str]) -> CommandFailed | None:
        """Move the volume's extents off one physical volume, or go on with that; nothing of it is left after a failure.

        :returns: what has failed; None when nothing has, which does not say that they have moved.
        """
        try:
            move = self._begin(source, targets)
            if move is not None and self._is_copied(move):
                self._program.finish(source, targets)
        except CommandFailed as failed:
            return failed
        return None

    def _begin(self, source: str, targets: Sequence[str]) -> MoveUnderWay | None:
        """Return the move off a physical volume when it is under way; None when another volume's is."""
        for seconds in (0, *BEGIN_SECONDS):
            if seconds:
                self._program.begin(source, targets, seconds)
            layout = self._look()
            for move in layout.moves:
                if move.source == source:
                    return move if move.is_of(self._lv, targets) else None
            if source not in layout.extents:  # somebody has brought it to its end
                return None
        raise CommandFailed(("pvmove", source), TIMED_OUT, f"it has not begun within {seconds} seconds")

    def _is_copied(self, move: MoveUnderWay) -> bool:
        """Wait until all is copied and nothing has gone wrong.

        :returns: False when somebody else has ended the move.
        :raises CommandFailed: when a disk could not be read or written; the move is taken back.
        """
        device = f"{self._vg.replace('-', '--')}-{move.name}"
        pause = _LOOK_SECONDS / 16
        while True:
            try:
                status = self._commands.run("dmsetup", "status", device)
            except CommandFailed:
                if all(each.name != move.name for each in self._look().moves_of(self._lv)):
                    return False
                # It is not active, as after a reboot.
                self._commands.run("lvchange", "-qq", "--activate", "y", "--poll", "n", f"{self._vg}/{self._lv}")
                status = self._commands.run("dmsetup", "status", device)
            is_whole, health = mirrors.status(status)
            if is_whole or health.strip("A"):
                self._require_same(move, device, health)
                return True
            self._pause(pause)
            pause = min(2 * pause, _LOOK_SECONDS)

    def _require_same(self, move: MoveUnderWay, device: str, health: str) -> None:
        """Compare what was copied with where it comes from; take the move back when it is not the same."""
        try:
            fault = self._fault(device, health)
        except CommandFailed:
            self._abort(move)
            raise
        if fault:
            self._abort(move)
            way = f"from {move.source} to {', '.join(move.targets)}"
            raise CommandFailed(("pvmove",), 0, f"the kernel could not copy {way}: {fault}")

    def _fault(self, device: str, health: str) -> str:
        """Say what is wrong with a copy; empty when nothing is."""
        if health.strip("A"):
            return f"the mirror's sides are {health}"
        different = self._compare(mirrors.parts(self._commands.run("dmsetup", "table", device)))
        return "" if different is None else f"its sides differ at byte {different}"

    def _abort(self, move: MoveUnderWay) -> None:
        """Take a move back. One that has just come to its end stays, which the next look shows."""
        self._record_if_possible(move.filled)
        try:
            self._program.abort(move.source)
        except CommandFailed:
            if any(each.name == move.name for each in self._look().moves_of(self._lv)):
                raise

    def _stop(self) -> Layout:
        """Return where the volume is when nothing moves it any more."""
        end = self._clock() + _PROCESS_SECONDS
        while True:
            # In this order: what a process has begun that is gone by now is seen in the metadata.
            at_work = self._at_work(self._vg, self._lv)
            layout = self._look()
            under_way = layout.moves_of(self._lv)
            for move in under_way:
                if not move.is_of(self._lv, {*self._destination_pvs, *self._source_pvs}):
                    raise self._busy(move)
                self._abort(move)
            if not under_way and not at_work:
                return layout
            if self._clock() > end:
                raise errors.StorageBusy(
                    backend=self._backend, reason=f"a process that moves {self._vg}/{self._lv} does not end"
                )
            self._pause(_LOOK_SECONDS / 4)

    def _bring_back(self, failed: CommandFailed) -> None:
        """Bring back what has left, after a failure; where that fails too, :meth:`settle` is to try again."""
        try:
            for move in self._look().moves_of(self._lv):
                if move.is_of(self._lv, self._destination_pvs):
                    self._abort(move)
            layout = self._look()
            if layout.on(self._destination_pvs) and self._source_pvs:
                self._return(layout)
        except (CommandFailed, errors.VolmigError) as error:
            failed.add_note(f"It could not be brought back at once: {error}")

    def _return(self, layout: Layout) -> None:
        """Bring back what has left."""
        self._record_if_possible(layout.places(self._destination_pvs, within=self._within))
        self._gather(self._source_pvs)

    def _record_if_possible(self, extents: Sequence[Extents]) -> None:
        """Keep record of what was filled, unless that fails: to take a move back must not depend on it. One that is
        known to be bad would else take effect some day.
        """
        try:
            self._record(extents)
        except (CommandFailed, errors.VolmigError) as error:
            LOG.warning(
                "what the move of %s has filled is not on record, and will not be cleared: %s",
                self._lv,
                error,
                extra={"lv": self._lv},
            )

    # --- others -------------------------------------------------------------------------------

    def _await_others(self, source: str, targets: Sequence[str]) -> None:
        """Wait while others move something off the same physical volume.

        :raises volmig.errors.StorageBusy: when such a move does not get on.
        """
        seen, since = "", self._clock()
        while True:
            moves = [move for move in self._look().moves if move.source == source]
            others = [move for move in moves if not move.is_of(self._lv, targets)]
            if not others:
                return
            state = f"{others[0].name} {others[0].volumes} {others[0].percent}"
            if state != seen:
                seen, since = state, self._clock()
            elif self._clock() - since > _STALLED_SECONDS:
                raise self._busy(others[0])
            self._pause(_LOOK_SECONDS)

    def _await_others_processes(self) -> None:
        """Wait while a pvmove of this volume runs that an earlier worker has left, and that may not have begun yet."""
        end = self._clock() + _PROCESS_SECONDS
        while self._at_work(self._vg, self._lv) and not self._look().moves_of(self._lv):
            if self._clock() > end:
                reason = f"a pvmove of {self._vg}/{self._lv} runs and does nothing"
                raise errors.StorageBusy(backend=self._backend, reason=reason)
            self._pause(_LOOK_SECONDS / 4)

    # --- errors -------------------------------------------------------------------------------

    def _busy(self, move: MoveUnderWay) -> errors.StorageBusy:
        volumes = ", ".join(move.volumes)
        reason = (
            f"{move.name} of {self._vg} moves {volumes} off {move.source} ({move.percent} %), and is not of this "
            f"migration; `pvmove {move.source}` brings it to its end"
        )
        return errors.StorageBusy(backend=self._backend, reason=reason)

    def _disk_full(self, pvs: Sequence[str], free_bytes: int) -> errors.DiskFull:
        return errors.DiskFull(path=f"{self._lv} on {', '.join(pvs)} of {self._vg}", offset=free_bytes)

    def _as_error(self, failed: CommandFailed, targets: Sequence[str]) -> errors.VolmigError:
        if _NO_ROOM.search(failed.stderr):
            return self._disk_full(targets, 0)
        return errors.TransferFailed(
            path=f"{self._vg}/{self._lv}",
            offset=0,
            reason=f"{failed.reason} (to {self._destination})",
            hint=f"Look at the physical volumes {', '.join(targets)} and at the kernel's log, then repeat the request.",
        )


def _is_further(before: Layout, after: Layout, targets: Sequence[str]) -> bool:
    def left(layout: Layout) -> int:
        return sum(layout.extents.values()) - layout.on(targets)

    return left(after) < left(before)
