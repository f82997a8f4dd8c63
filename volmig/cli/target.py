"""The destination of ``volmig copy``: opened once, checked, held to the end, and taken back when the copy fails."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from volmig import errors
from volmig.transfer.ends.identity import identity_of, is_certain
from volmig.transfer.guard import occupied, signatures
from volmig.transfer.guard.occupied import Storage
from volmig.transfer.nbd.address import is_address

_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENXIO})


_UNDO_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a destination has to fulfil."""

    path: str
    size_bytes: int
    """Bytes that it must have room for."""
    force: bool
    """Whether to overwrite whatever is there."""
    source: str
    warn: Callable[[str], None]
    """Told what is overwritten, with ``force``."""
    identity: tuple[str, ...] | None = None
    """What an earlier run of the same copy wrote to; None when there was none."""
    checkpoint: str = ""
    """Where that is recorded, for messages."""
    sized: bool = True
    """Whether a regular file must have ``size_bytes``; False for a format that grows by itself."""


class Target:
    """A destination that was found fit; entering and leaving it does nothing but closing at the end.

    Nothing but making a new file is done before :meth:`prepare`.

    A block device is claimed meanwhile, as mkfs does it, so that nobody can mount it. All that is done with the
    destination goes through the descriptor that was checked: what happens to the path meanwhile changes nothing.

    :raises volmig.errors.RequestError: when it is not fit; nothing was changed.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.name = wanted.path
        self.end = wanted.path
        """What the copy is given: leads to the open file from this process, and from programs that it starts."""
        self.is_zero = False
        """Whether it reads as zeroes, since it was made, or was empty."""
        self.hangs = False
        """Whether its storage did not answer in time when something was to be taken back."""
        self._wanted = wanted
        self._is_new = False
        self._was_empty = False
        self._fd = -1
        self._directory = -1
        self._stack = ExitStack()
        if is_address(wanted.path):
            return
        try:
            self._open()
        except BaseException:
            self.undo()
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identity(self) -> tuple[str, ...] | None:
        """What it is known by; None for what has no path."""
        return identity_of(self._fd) if self._fd >= 0 else None

    def prepare(self) -> None:
        """Make a regular file as large as the copy, if it is smaller.

        :raises volmig.errors.DestinationNotWritable: when that cannot be.
        """
        if self._fd < 0:
            return
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or not self._wanted.sized or status.st_size >= self._wanted.size_bytes:
            return
        if not self._is_new and not status.st_size and self._wanted.identity is None:
            self._was_empty = self.is_zero = True
        try:
            os.ftruncate(self._fd, self._wanted.size_bytes)
        except OSError as exc:
            reason = f"it cannot be made {self._wanted.size_bytes} bytes large: {exc.strerror}"
            raise errors.DestinationNotWritable(path=self.name, reason=reason) from exc

    def settle(self) -> None:
        """Make sure, after the copy, that what was written is what the path leads to, also after a crash.

        :raises volmig.errors.TransferFailed: when it is not.
        """
        if self._fd < 0:
            return
        try:
            in_place = os.path.samestat(Path(self.name).stat(), os.fstat(self._fd))
        except OSError:
            in_place = False
        if not in_place:
            raise errors.TransferFailed(
                path=self.name,
                offset=0,
                reason="the copy is complete, but something else has taken its place",
                hint="Find out who put it there, and repeat the copy.",
            )
        if self._is_new:
            os.fsync(self._directory)

    def undo(self) -> str:
        """Take back what this run made; return what was done in words, empty when nothing was.

        Waits a second at most: storage that does not answer must not keep anybody from being told why the copy ended.
        """
        if self._fd < 0 or not (self._is_new or self._was_empty):
            return ""
        said: list[str] = []
        if self._in_time(lambda: said.append(self._take_back())):
            return said[0]
        doing = "removing" if self._is_new else "emptying"
        return f"{self.name} is unfinished, and {doing} it hangs: its storage does not answer."

    def close(self) -> None:
        """Let go of it; by a thread of its own when its storage does not answer, as the last close of a device asks."""
        if self._fd >= 0 and not self.hangs:
            self._in_time(self._stack.close)
        elif not self.hangs:
            self._stack.close()
        self._fd = -1

    def _in_time(self, work: Callable[[], object]) -> bool:
        """Do something that may hang; say whether it was done in time. If not, what is held is let go of when it is."""
        lock, done, given_up = threading.Lock(), threading.Event(), threading.Event()

        def act() -> None:
            # What closing says is too late for anybody: all that counts was flushed before.
            try:
                with contextlib.suppress(OSError):
                    work()
            finally:
                with lock:
                    done.set()
                if given_up.is_set():
                    self._stack.close()

        threading.Thread(target=act, name="copy-undo", daemon=True).start()
        done.wait(_UNDO_SECONDS)
        with lock:
            if not done.is_set():
                given_up.set()
                self.hangs = True
        return not self.hangs

    def _take_back(self) -> str:
        if self._is_new:
            return self._remove()
        try:
            os.ftruncate(self._fd, 0)
        except OSError as exc:
            return f"{self.name} is unfinished, and could not be emptied ({exc.strerror})."
        return f"{self.name}, which was empty before, was emptied."

    # --- opening ------------------------------------------------------------------------------

    def _open(self) -> None:
        path = Path(self.name)
        try:
            status = path.stat()
        except FileNotFoundError:
            self._create()
        except (OSError, ValueError) as exc:
            raise self._not_writable(exc) from exc
        else:
            _check_kind(self.name, status)
            self._open_present(status)
        self.end = f"/proc/{os.getpid()}/fd/{self._fd}"

    def _open_present(self, expected: os.stat_result) -> None:
        # For reading: the kernel tells everybody when a device that was open for writing is closed.
        looked_at = self._held(self.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        status = os.fstat(looked_at)
        storage = Storage.of(status)
        if storage is None or not os.path.samestat(status, expected):
            raise errors.DestinationNotWritable(path=self.name, reason="something else took its place just now")
        self._check_identity(looked_at)
        source = occupied.identify(self._wanted.source)
        if source is not None:
            occupied.check_apart(source, storage)
        if storage.is_device:
            self._check_device(looked_at, storage)
        else:
            self._check_file(status, storage)
        # The very same, whatever the path leads to by now.
        self._fd = self._held(f"/proc/self/fd/{looked_at}", os.O_RDWR)

    def _held(self, path: str, flags: int) -> int:
        """Return a descriptor that lasts as long as this object."""
        try:
            fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as exc:
            raise self._not_writable(exc) from exc
        self._stack.callback(os.close, fd)
        return fd

    def _create(self) -> None:
        if self._wanted.identity is not None:
            raise self._mismatch(f"its destination is no longer at {self.name}")
        path = Path(self.name)
        self._directory = self._held(str(path.parent), os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(path.name, flags, 0o600, dir_fd=self._directory)
        except FileExistsError as exc:
            reason = "it is a symbolic link that leads nowhere" if path.is_symlink() else "somebody made it just now"
            raise errors.DestinationNotWritable(path=self.name, reason=reason) from exc
        except OSError as exc:
            raise self._not_writable(exc) from exc
        self._stack.callback(os.close, self._fd)
        self._is_new = self.is_zero = True

    # --- checks -------------------------------------------------------------------------------

    def _check_identity(self, fd: int) -> None:
        if self._wanted.identity is None:
            return
        if identity_of(fd) != self._wanted.identity:
            detached = "" if self._wanted.identity[0] == "file" else ", or it was detached meanwhile"
            raise self._mismatch(f"what is at {self.name} is not what it was writing to{detached}")
        if not is_certain(self._wanted.identity):
            raise self._mismatch(f"nobody can tell whether {self.name} is still the device that it was writing to")

    def _check_device(self, fd: int, storage: Storage) -> None:
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        if size_bytes < self._wanted.size_bytes:
            raise errors.RequestInvalid(
                what=self.name,
                reason=f"it has {size_bytes} bytes, and {self._wanted.size_bytes} are to be copied",
                hint="Name a larger destination, or copy less with --size.",
            )
        try:
            if occupied.is_read_only(fd):
                raise errors.DestinationNotWritable(path=self.name, reason="the device is read-only")
            claimed = occupied.claim(fd)
        except OSError as exc:
            raise self._not_writable(exc) from exc
        found = occupied.obstacles(storage, self.name)
        if claimed is not None:
            self._stack.callback(os.close, claimed)
        elif not found:
            shown_by = shlex.join(["lsblk", self.name])
            found.append(occupied.Obstacle(what="the kernel says that it is in use", shown_by=shown_by))
        signature = signatures.signature_of(fd, self.name)
        if signature is not None and not self._is_own(signature):
            shown_by = shlex.join(["wipefs", "--no-act", self.name])
            found.append(occupied.Obstacle(what=f"it holds {signature}", shown_by=shown_by))
        self._refuse(found)

    def _is_own(self, signature: signatures.Signature) -> bool:
        """Say whether an earlier run has copied a signature to the destination, since the source has the same."""
        if self._wanted.identity is None or not signature.tags:
            return False
        try:
            fd = os.open(self._wanted.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return signatures.signature_of(fd, self._wanted.source) == signature
        finally:
            os.close(fd)

    def _check_file(self, status: os.stat_result, storage: Storage) -> None:
        found = occupied.obstacles(storage, self.name)
        if status.st_size and self._wanted.identity is None:
            shown_by = shlex.join(["ls", "-l", self.name])
            found.append(occupied.Obstacle(what=f"it is a file of {status.st_size} bytes", shown_by=shown_by))
        self._refuse(found)

    def _refuse(self, found: list[occupied.Obstacle]) -> None:
        if found and not self._wanted.force:
            raise errors.DestinationOccupied(
                path=self.name, reason="; ".join(one.what for one in found), shown_by=found[0].shown_by
            )
        for one in found:
            self._wanted.warn(f"Overwriting {self.name} although {one.what}.")

    def _remove(self) -> str:
        """Remove what was made, unless somebody has put another thing in its place."""
        name = Path(self.name).name
        try:
            if os.path.samestat(os.stat(name, dir_fd=self._directory, follow_symlinks=False), os.fstat(self._fd)):
                os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            return ""
        except OSError as exc:
            return f"{self.name} is unfinished, and could not be removed ({exc.strerror})."
        return f"The unfinished {self.name} was removed."

    def _mismatch(self, reason: str) -> errors.CheckpointMismatch:
        return errors.CheckpointMismatch(path=self._wanted.checkpoint, reason=reason)

    def _not_writable(self, exc: OSError | ValueError) -> errors.VolmigError:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        if isinstance(exc, ValueError) or exc.errno in _NOT_WRITABLE:
            return errors.DestinationNotWritable(path=self.name, reason=reason)
        if exc.errno == errno.EBUSY or exc.errno == errno.ETXTBSY:
            return errors.DestinationNotWritable(
                path=self.name, reason=reason, hint="Stop what uses it, and repeat the command."
            )
        return errors.TransferFailed(path=self.name, offset=0, reason=f"opening: {reason}")


def _check_kind(path: str, status: os.stat_result) -> None:
    # Before opening, which does something to a tape or a watchdog.
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise errors.RequestInvalid(
            what=path,
            reason="it is neither a regular file nor a block device",
            hint="Name a file, which need not exist, or a block device.",
        )
