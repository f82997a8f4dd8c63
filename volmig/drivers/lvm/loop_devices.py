"""Loop devices, told apart by the inode that they are bound to: a path says nothing of a file that was replaced."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from volmig import errors
from volmig.drivers.lvm.commands import CommandFailed

if TYPE_CHECKING:
    from volmig.drivers.lvm.commands import Commands

_COLUMNS: Final = "NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE,OFFSET,SIZELIMIT,AUTOCLEAR,RO"
_PAUSE_SECONDS: Final = 0.05
_HINT: Final = "Look at `losetup --list`, and detach by `losetup --detach` what nobody needs."


@dataclass(frozen=True, kw_only=True, slots=True)
class FileKey:
    """Which file, whatever its name: its device's numbers and its inode's."""

    major: int
    minor: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileKey:
        """Return the key of a file by what stat(2) says of it."""
        return cls(major=os.major(status.st_dev), minor=os.minor(status.st_dev), inode=status.st_ino)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopDevice:
    """A loop device that is bound to a file."""

    path: str
    key: FileKey
    file: str
    """The file's path as the kernel tells it, with `` (deleted)`` at its end when it has no name any more."""
    is_plain: bool
    """It shows the whole file, and can be written to."""
    is_going: bool
    """It is detached when the last one who has it open closes it."""


class LoopDevices:
    """The loop devices of this machine.

    :param patience_seconds: how long to wait for a device that is being detached.
    """

    def __init__(self, commands: Commands, *, backend: str, patience_seconds: float = 10.0) -> None:
        self._commands = commands
        self._backend = backend
        self._patience_seconds = patience_seconds

    def all(self) -> list[LoopDevice]:
        """Return all that are bound."""
        text = self._commands.run("losetup", "--list", "--json", "--output", _COLUMNS)
        rows = json.loads(text)["loopdevices"] if text.strip() else ()
        # One that this user may not look into has no inode told; attaching will say that rights are missing.
        return [_device(row) for row in rows if row["back-ino"] is not None]

    def bound_to(self, status: os.stat_result) -> list[LoopDevice]:
        """Return those that are bound to a file."""
        key = FileKey.of(status)
        return [device for device in self.all() if device.key == key]

    def usable(self, status: os.stat_result) -> LoopDevice | None:
        """Return the one that is bound to a file; None when there is none.

        One that is being detached is waited for: it would vanish under its next user. It is taken when it stays, which
        means that somebody works on it.

        :raises volmig.errors.BackendSetupFailed: when there are several, or one that shows a part of the file only, or
            does not let it be written to.
        """
        end = time.monotonic() + self._patience_seconds / 5
        while True:
            found = self.bound_to(status)
            if not any(device.is_going for device in found) or time.monotonic() > end:
                break
            time.sleep(_PAUSE_SECONDS)
        names = ", ".join(device.path for device in found)
        if len(found) > 1:
            raise self._unusable(f"several loop devices are bound to its file: {names}")
        if found and not found[0].is_plain:
            raise self._unusable(f"the loop device {names} is read-only, or shows a part of its file only")
        return found[0] if found else None

    def attach(self, path: Path, status: os.stat_result) -> LoopDevice:
        """Bind a new one to the file *path*, past the page cache where the file system can do that.

        :param status: what stat(2) said of the file.
        :raises volmig.errors.BackendSetupFailed: when another file has taken its name meanwhile.
        """
        device = self._commands.run("losetup", "--find", "--show", str(path)).strip()
        for found in self.bound_to(status):
            if found.path == device:
                with contextlib.suppress(CommandFailed):  # the file system has no direct I/O: slower, and as safe
                    self._commands.run("losetup", "--direct-io=on", device)
                return found
        self._commands.run("losetup", "--detach", device)
        raise self._unusable(f"{path} was replaced by another file while it was being attached")

    def detach(self, status: os.stat_result) -> None:
        """Detach all that are bound to a file, and return when they are gone.

        :raises volmig.errors.BackendInUse: when somebody keeps one open.
        """
        key = FileKey.of(status)
        end = time.monotonic() + self._patience_seconds
        while found := [device for device in self.all() if device.key == key]:
            for device in found:
                if not device.is_going:
                    self._commands.run("losetup", "--detach", device.path)
            if all(device.is_going for device in found) and time.monotonic() > end:
                names = ", ".join(device.path for device in found)
                raise errors.BackendInUse(
                    backend=self._backend,
                    users=f"the loop device {names} is detached, but somebody still has it open",
                    hint=f"Find out who by `fuser --verbose {found[0].path}`, then repeat the command.",
                )
            time.sleep(_PAUSE_SECONDS)

    def _unusable(self, reason: str) -> errors.BackendSetupFailed:
        return errors.BackendSetupFailed(backend=self._backend, reason=reason, hint=_HINT)


def _device(row: dict[str, Any]) -> LoopDevice:
    major, _, minor = str(row["back-maj:min"]).strip().partition(":")
    return LoopDevice(
        path=str(row["name"]),
        key=FileKey(major=int(major), minor=int(minor), inode=int(row["back-ino"])),
        file=str(row["back-file"]),
        is_plain=int(row["offset"]) == 0 and int(row["sizelimit"]) == 0 and not _truth(row["ro"]),
        is_going=_truth(row["autoclear"]),
    )


def _truth(value: object) -> bool:
    # Programs before util-linux 2.33 write numbers as text.
    return value in (True, 1, "1")
