"""A volume group on a sparse file: made, found again after a reboot, and taken down on request."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.lvm.backing_file import BackingFile
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.loop_devices import LoopDevice, LoopDevices

if TYPE_CHECKING:
    from volmig.drivers.lvm.commands import Commands

LOG = logging.getLogger(__name__)

LEAST_BYTES: Final = 16 * 1024**2
"""Size of the smallest file: a few extents and LVM's own metadata."""
STEP_BYTES: Final = 4096
"""Sizes of files are multiples of this: whole sectors of any loop device."""
_OPEN_SECONDS: Final = 3.0
_LISTED_SECONDS: Final = 3.0
_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """A volume group on one device of this machine."""

    name: str
    uuid: str
    tags: tuple[str, ...]
    device: str


class Loopback:
    """The volume group of a backend whose storage is a file, bound to a loop device.

    * The file has its name only when it holds the volume group: it is made under another name, which means that
      whatever has the name is either this backend's, whole, or a stranger's, and never overwritten.
    * The volume group is known by its name and by a tag that tells the backend.
    * Every call may be repeated, also after one that was killed at any place. One at a time works on the files of a
      directory; the others wait.

    :param file: absolute path; its directory must be there.
    :param size_bytes: size of the file, at least 16 MiB and a multiple of 4 KiB. It takes no more room than is written.
    :param vg: name of the volume group.
    """

    def __init__(self, commands: Commands, *, backend: str, file: Path, size_bytes: int, vg: str) -> None:
        self._commands = commands
        self._backend = backend
        self._path = file
        self._size_bytes = size_bytes
        self._vg = vg
        self._tag = f"volmig.backend={backend}"

    def attach(self, *, create: bool) -> None:
        """Have the volume group there and active: find it, bind its file to a loop device again, or make it.

        :param create: make it when there is no file; else that is an error.
        :raises volmig.errors.BackendDown: when there is no file and none is to be made, or a program fails.
        :raises volmig.errors.BackendSetupFailed: when a file is there that is not this backend's or not as large as
            configured, or the volume group's name is taken; nothing is changed then.
        :raises volmig.errors.ConfigOptionInvalid: when the file or its size cannot be as configured.
        :raises volmig.errors.StorageBusy: when another process works on it for a minute.
        """
        with self._working("set up") as (file, loops, is_there):
            if not is_there:
                if not create:
                    raise self._missing()
                reason = f"there is no directory {self._path.parent}"
                raise self._option_invalid("lvm_loopback_file", reason)
            self._sweep(file, loops)
            status = file.status(self._path)
            if status is None:
                self._refuse_others(self._groups(), device=None)
                if not create:
                    raise self._missing()
                group = self._make(file, loops)
            else:
                group = self._find(loops, status)
            # Whether or not its device was bound already: an earlier call may have been killed before this.
            self._commands.run("vgchange", "--activate", "y", "--select", f"vg_uuid={group.uuid}")

    def detach(self, *, delete: bool) -> None:
        """Deactivate the volume group and give its loop device back. Succeeds when that has been done.

        :param delete: remove the file too, and so all data.
        :raises volmig.errors.BackendInUse: when a logical volume is open, or when somebody has removed the file, whose
            data is then only there as long as the loop device is.
        :raises volmig.errors.BackendSetupFailed: when the file is not this backend's; nothing is changed then.
        :raises volmig.errors.BackendDown: when a program fails.
        :raises volmig.errors.StorageBusy: when another process works on it for a minute.
        """
        with self._working("taken down") as (file, loops, is_there):
            if is_there:
                self._sweep(file, loops)
            status = file.status(self._path) if is_there else None
            if status is None:
                self._refuse_nameless(loops)
                return
            if delete:
                self._require_size(status)
            device = loops.usable(status)
            if device is None and not delete:
                return
            with self._bound(loops, status, device) as bound:
                self._deactivate(self._own_group(self._listed(bound), bound))
                if delete:
                    file.give_up()
            loops.detach(status)
            if delete:
                file.remove(file.leaving)

    # --- making and finding -------------------------------------------------------------------

    def _make(self, file: BackingFile, loops: LoopDevices) -> _Group:
        status = file.make(self._size_bytes)
        try:
            device = loops.attach(file.making, status)
            # Without this, udev's rules would activate it whenever its device appears, also while it is taken down.
            quiet = ("--setautoactivation", "n")
            self._commands.run("vgcreate", *quiet, "--addtag", self._tag, self._vg, device.path)
            group = self._own_group(self._listed(device), device)
            file.give_name()
        except BaseException:
            with _logged(f"{self._backend}: what was begun at {self._path} could not be removed"):
                self._sweep(file, loops)
            raise
        LOG.info("%s: made %s with the volume group %s on %s", self._backend, self._path, self._vg, device.path)
        return group

    def _find(self, loops: LoopDevices, status: os.stat_result) -> _Group:
        self._require_size(status)
        device = loops.usable(status)
        if device is None:  # before anything is changed
            self._refuse_others(self._groups(), device=None)
        with self._bound(loops, status, device) as bound:
            groups = self._listed(bound)
            self._refuse_others(groups, device=bound)
            return self._own_group(groups, bound)

    def _require_size(self, status: os.stat_result) -> None:
        if status.st_size != self._size_bytes:
            raise self._not_ours(
                f"{self._path} has {status.st_size} bytes, and lvm_loopback_size_bytes is {self._size_bytes}",
                "Put the file back as it was, or correct the option: its size is never changed.",
            )

    @contextlib.contextmanager
    def _bound(self, loops: LoopDevices, status: os.stat_result, device: LoopDevice | None) -> Iterator[LoopDevice]:
        """Give the loop device of the file, bound now unless it is; one that was bound now is detached on failure."""
        if device is not None:
            yield device
            return
        bound = loops.attach(self._path, status)
        try:
            yield bound
        except BaseException:
            with _logged(f"{self._backend}: {bound.path} stays bound to {self._path}"):
                loops.detach(status)
            raise

    def _groups(self) -> list[_Group]:
        rows = self._commands.report("pvs", ("pv_name", "vg_name", "vg_uuid", "vg_tags"), "--foreign")
        return [
            _Group(
                name=row["vg_name"], uuid=row["vg_uuid"], tags=tuple(row["vg_tags"].split(",")), device=row["pv_name"]
            )
            for row in rows
        ]

    def _listed(self, device: LoopDevice) -> list[_Group]:
        """Return all volume groups, when LVM knows of *device*: of one just bound it may hear late, from udev."""
        end = time.monotonic() + _LISTED_SECONDS
        while True:
            groups = self._groups()
            if any(_is_on(group, device) for group in groups) or time.monotonic() > end:
                return groups
            time.sleep(0.3)

    def _own_group(self, groups: list[_Group], device: LoopDevice) -> _Group:
        """Return this backend's group on a device. :raises volmig.errors.BackendSetupFailed: when there is none."""
        on_device = [group for group in groups if _is_on(group, device)]
        for group in on_device:
            if group.name == self._vg and self._tag in group.tags:
                return group
        found = f"the volume group {on_device[0].name!r}" if on_device and on_device[0].name else "none that is usable"
        if on_device and on_device[0].name == self._vg:
            found = f"one of that name without the tag {self._tag}"
        raise self._not_ours(
            f"{self._path} should hold the volume group {self._vg!r} of this backend, and holds {found}",
            "It is not overwritten. Name another file by lvm_loopback_file, or move this one away.",
        )

    def _refuse_others(self, groups: list[_Group], *, device: LoopDevice | None) -> None:
        """Refuse when a volume group of the name is anywhere but on *device*."""
        others = [group for group in groups if group.name == self._vg and not (device and _is_on(group, device))]
        if not others:
            return
        nameless = self._nameless(LoopDevices(self._commands, backend=self._backend), others)
        if nameless is not None:
            raise self._not_ours(*self._removed(nameless))
        where = ", ".join(sorted({group.device for group in others}))
        raise self._not_ours(
            f"a volume group named {self._vg!r} is on {where}, outside {self._path}",
            "Choose another name by lvm_volume_group, or rename the other one by `vgrename`.",
        )

    # --- taking down --------------------------------------------------------------------------

    def _deactivate(self, group: _Group) -> None:
        """Deactivate a volume group. :raises volmig.errors.BackendInUse: naming what is open in it."""
        select = ("--select", f"vg_uuid={group.uuid}")
        end = time.monotonic() + _OPEN_SECONDS
        while True:
            self._refuse_open(select, until=end)
            try:
                self._commands.run("vgchange", "--activate", "n", *select)
            except CommandFailed:
                # Somebody may have opened one since: then the next look names it.
                if time.monotonic() > end:
                    raise
                time.sleep(0.3)
            else:
                return

    def _refuse_open(self, select: tuple[str, str], *, until: float) -> None:
        """Wait for those who only look, as udev does at each change; then name who stays."""
        while True:
            rows = self._commands.report("lvs", ("lv_name", "lv_device_open", "lv_layout"), *select)
            # A pool is always open when one of its volumes is active.
            users = sorted(
                row["lv_name"]
                for row in rows
                if row["lv_device_open"] in {"open", "1"} and "pool" not in row["lv_layout"]
            )
            if not users:
                return
            if time.monotonic() > until:
                break
            time.sleep(0.3)
        more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
        raise errors.BackendInUse(
            backend=self._backend,
            users=f"open logical volumes: {', '.join(users[:_SHOWN])}{more}",
            hint=f"Stop what uses them; `fuser --verbose /dev/{self._vg}/{users[0]}` may tell who. Then repeat it.",
        )

    def _refuse_nameless(self, loops: LoopDevices) -> None:
        """Refuse when the file has been removed while it was bound: detaching it would end its data."""
        device = self._nameless(loops, [group for group in self._groups() if group.name == self._vg])
        if device is not None:
            reason, hint = self._removed(device)
            raise errors.BackendInUse(backend=self._backend, users=reason, hint=hint)

    def _nameless(self, loops: LoopDevices, groups: list[_Group]) -> LoopDevice | None:
        """Return the loop device of one of the volume groups, if its file was this one and has no name any more."""
        on = {group.device for group in groups if self._tag in group.tags}
        names = {f"{path} (deleted)" for path in (self._path, self._path.resolve())}
        return next((device for device in loops.all() if device.path in on and device.file in names), None)

    def _sweep(self, file: BackingFile, loops: LoopDevices) -> None:
        """Remove what an interrupted set-up or removal has left; nobody's data is in it."""
        for path, status in file.leftovers():
            devices = loops.bound_to(status)
            for group in self._groups() if devices else ():
                if group.uuid and any(_is_on(group, device) for device in devices):
                    self._deactivate(group)
            loops.detach(status)
            file.remove(path)

    # --- inside -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _working(self, what: str) -> Iterator[tuple[BackingFile, LoopDevices, bool]]:
        self._check_options()
        file = BackingFile(self._path, backend=self._backend)
        try:
            with file.locked() as is_there:
                yield file, LoopDevices(self._commands, backend=self._backend), is_there
        except CommandFailed as error:
            reason = f"the volume group {self._vg!r} on {self._path} could not be {what}: {error}"
            raise errors.BackendDown(backend=self._backend, reason=reason) from error

    def _check_options(self) -> None:
        if not self._path.is_absolute() or ".." in self._path.parts or not self._path.name:
            raise self._option_invalid("lvm_loopback_file", f"{str(self._path)!r} is not an absolute path of a file")
        if self._size_bytes < LEAST_BYTES or self._size_bytes % STEP_BYTES:
            reason = f"{self._size_bytes} is below {LEAST_BYTES} or no multiple of {STEP_BYTES}"
            raise self._option_invalid("lvm_loopback_size_bytes", reason)

    def _option_invalid(self, option: str, reason: str) -> errors.ConfigOptionInvalid:
        return errors.ConfigOptionInvalid(
            option=option, group=self._backend, source="the backend's options", reason=reason
        )

    def _not_ours(self, reason: str, hint: str) -> errors.BackendSetupFailed:
        return errors.BackendSetupFailed(backend=self._backend, reason=reason, hint=hint)

    def _removed(self, device: LoopDevice) -> tuple[str, str]:
        """Return what to say when the file has no name any more: the reason, and the hint."""
        return (
            f"somebody has removed the file {self._path}, whose data is now only in the loop device {device.path}",
            f"Stop what writes to it and save the data: `cp --sparse=always {device.path} COPY`. Then let go of it by "
            f"`vgchange --activate n {self._vg}` and `losetup --detach {device.path}`, and put the copy in its place.",
        )

    def _missing(self) -> errors.BackendDown:
        return errors.BackendDown(
            backend=self._backend,
            reason=f"its storage is not there: there is no file {self._path}",
            hint=f"Bring the file back; if it was never made, make it by `volmig backend setup {self._backend}`.",
        )


def _is_on(group: _Group, device: LoopDevice) -> bool:
    return group.device == device.path


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log an error that would hide the one that is on its way."""
    try:
        yield
    except (errors.VolmigError, CommandFailed) as error:
        LOG.warning("%s: %s", what, error)
