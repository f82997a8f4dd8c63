"""Keeping the checkpoint of a copy in a file, so that it can go on after anything that ends a process."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from volmig import errors
from volmig.transfer.base import Checkpoint
from volmig.transfer.resume.recording import LARGEST_BYTES, Record, decode_record, encode_record

_TRIES = 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CheckpointFile:
    """A file that holds the checkpoint of one copy while it is unfinished.

    At every instant the file is missing or whole: it is only ever replaced by another that is on stable storage
    already. One process at a time holds it, from :meth:`begin` to :meth:`close`; a lock sees to that, which ends with
    the process. Each run has a generation higher than all before, so that one which was held up, and lost its lock
    on storage that forgets locks, does not write over what its successor recorded. Not thread-safe.

    The file may be read and written by its owner only. Symbolic links and anything but a regular file are refused.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the file; nothing is opened before :meth:`begin`."""
        self.path = os.fsdecode(path)
        self.name = Path(self.path).name
        self._directory = -1
        self._fd = -1
        self._record = Record(generation=0)
        self._is_new = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def generation(self) -> int:
        """The number of this run; 0 before :meth:`begin`."""
        return self._record.generation

    @property
    def destination(self) -> tuple[str, ...] | None:
        """Identity of the destination that this copy writes to, as far as it was recorded."""
        return self._record.destination

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self._record.checkpoint is not None

    def begin(self) -> Checkpoint | None:
        """Take the file, record this run in it, and return what an earlier run left; None when there is nothing.

        The checkpoint's generation is the one before this run's, so that the next checkpoint has this run's.
        When this returns, the new generation is on stable storage. May be called once.

        :raises volmig.errors.CheckpointUnusable: when the file is damaged, or no checkpoint.
        :raises volmig.errors.CheckpointBusy: when another process holds it.
        :raises volmig.errors.OperatorError: when it cannot be read or written.
        """
        if self._directory >= 0:
            raise errors.InternalError(reason="a checkpoint file was begun twice")
        if not self.name:
            raise errors.CheckpointUnusable(path=self.path, reason="it is not a regular file")
        self._directory = self._open_directory()
        for _ in range(_TRIES):
            with _reading(self.path):
                fd = self._take()
            if fd is None:
                if self._create():
                    self._is_new = True
                    return None
                continue
            self._fd = fd
            before = self._read()
            self._clean()
            self._replace(dataclasses.replace(before, generation=before.generation + 1))
            if before.checkpoint is None:
                return None
            return dataclasses.replace(before.checkpoint, generation=before.generation)
        raise errors.CheckpointBusy(path=self.path)

    def name_destination(self, identity: tuple[str, ...] | None) -> None:
        """Record what is going to be written to, before the first write.

        :raises volmig.errors.CheckpointSuperseded:
        :raises volmig.errors.OperatorError: when it cannot be written.
        """
        self._replace(dataclasses.replace(self._record, destination=identity))

    def save(self, checkpoint: Checkpoint) -> None:
        """Record a checkpoint, under this run's generation; it is on stable storage when this returns.

        :raises volmig.errors.CheckpointSuperseded: when another run has taken the copy over or ended it; the file
            is left as it is.
        :raises volmig.errors.OperatorError: when it cannot be written; the checkpoint before stays.
        """
        checkpoint = dataclasses.replace(checkpoint, generation=self.generation)
        self._replace(
            dataclasses.replace(self._record, checkpoint=checkpoint, destination=checkpoint.destination.identity)
        )

    def forget(self) -> None:
        """Drop the checkpoint, since what it names as finished cannot be relied upon; the destination stays recorded.

        :raises volmig.errors.CheckpointSuperseded: when it is another run's by now.
        :raises volmig.errors.OperatorError: when it cannot be written.
        """
        self._replace(dataclasses.replace(self._record, checkpoint=None))

    def finish(self) -> None:
        """Remove the file, since the copy is complete, and let go of it.

        :raises volmig.errors.CheckpointSuperseded: when it is another run's by now.
        :raises volmig.errors.OperatorError: when it cannot be removed.
        """
        self._check_own()
        with _writing(self.path):
            os.unlink(self.name, dir_fd=self._directory)
            os.fsync(self._directory)
        self.close()

    def withdraw(self) -> None:
        """Remove the file if this run made it and nothing was copied; else leave it. Lets go of it in any case.

        :raises volmig.errors.VolmigError: as :meth:`finish` does.
        """
        if self._is_new and not self.has_checkpoint:
            self.finish()
        self.close()

    def close(self) -> None:
        """Let go of the file; what is recorded in it stays. Succeeds when nothing is held."""
        held, self._fd = self._fd, -1
        directory, self._directory = self._directory, -1
        for fd in (held, directory):
            if fd >= 0:
                os.close(fd)

    # --- taking it ----------------------------------------------------------------------------

    def _open_directory(self) -> int:
        with _reading(self.path):
            return os.open(Path(self.path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _take(self) -> int | None:
        """Return the file opened and locked; None when it is missing, or was replaced meanwhile."""
        # Nonblocking, since opening a pipe waits for its other end.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = os.open(self.name, flags, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise errors.CheckpointUnusable(path=self.path, reason="it is not a regular file") from exc
            raise _failure(self.path, "opening", exc) from exc
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise errors.CheckpointUnusable(path=self.path, reason="it is not a regular file")
            self._lock(fd)
            # Whoever held it before may have put another in its place, or removed it.
            if self._is_in_place(fd):
                taken, fd = fd, -1
                return taken
            return None
        finally:
            if fd >= 0:
                os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise errors.CheckpointBusy(path=self.path) from exc
        except OSError as exc:
            raise _failure(self.path, "locking", exc) from exc

    def _is_in_place(self, fd: int) -> bool:
        try:
            present = os.stat(self.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(present, os.fstat(fd))

    def _create(self) -> bool:
        """Make the file, locked from its first instant; return False when somebody else did."""
        record = Record(generation=1)
        with self._new_file(record) as (fd, temporary):
            try:
                os.link(temporary, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            except (FileExistsError, FileNotFoundError):
                # The latter: whoever made it in the meantime has cleaned up.
                return False
            os.fsync(self._directory)
            self._fd, self._record = os.dup(fd), record
        return True

    def _read(self) -> Record:
        with _reading(self.path), open(self._fd, "rb", closefd=False) as file:
            data = file.read(LARGEST_BYTES + 1)
        return decode_record(data, self.path)

    # --- replacing it -------------------------------------------------------------------------

    def _replace(self, record: Record) -> None:
        """Put a new file with *record* in the place of the present one."""
        self._check_own()
        with self._new_file(record) as (fd, temporary):
            # Locked already, so that there is no instant in which the name leads to a file that nobody holds.
            os.rename(temporary, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            held, self._fd = self._fd, os.dup(fd)
            os.close(held)
            self._record = record
            os.fsync(self._directory)

    def _check_own(self) -> None:
        if self._fd < 0:
            raise errors.InternalError(reason="a checkpoint file is used without being held")
        with _reading(self.path):
            if self._is_in_place(self._fd):
                return
            reason = self._usurper()
        raise errors.CheckpointSuperseded(path=self.path, reason=reason)

    def _usurper(self) -> str:
        """Return what is in the place of the file that this run had put there."""
        try:
            fd = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return "the file was removed, since another run ended it"
        except OSError as exc:
            return f"something else is in its place ({exc.strerror})"
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            try:
                found = decode_record(file.read(LARGEST_BYTES + 1), self.path).generation
            except errors.CheckpointUnusable as exc:
                return f"something else is in its place ({exc.fields['reason']})"
        return f"run {found} of it has recorded itself, and this one was run {self.generation}"

    @contextlib.contextmanager
    def _new_file(self, record: Record) -> Iterator[tuple[int, str]]:
        """Give a locked file with *record*, on stable storage, under a name of its own, which is gone afterwards."""
        temporary = f".{self.name}.{secrets.token_hex(8)}.new"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with _writing(self.path):
            fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
            try:
                self._lock(fd)
                with open(fd, "wb", closefd=False) as file:
                    file.write(encode_record(record))
                os.fsync(fd)
                yield fd, temporary
            finally:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._directory)

    def _clean(self) -> None:
        """Remove what a run that was killed while it wrote has left; only the holder may."""
        with _writing(self.path):
            for name in os.listdir(self._directory):  # noqa: PTH208 - a descriptor
                if name.startswith(f".{self.name}.") and name.endswith(".new"):
                    middle = name[len(self.name) + 2 : -4]
                    if len(middle) == 16 and all(character in "0123456789abcdef" for character in middle):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=self._directory)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _failure(path, "reading", exc) from exc


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise errors.DiskFull(path=path, offset=0) from exc
        raise _failure(path, "writing", exc) from exc


def _failure(path: str, doing: str, exc: OSError) -> errors.TransferFailed:
    return errors.TransferFailed(
        path=path,
        offset=0,
        reason=f"{doing} the checkpoint: {exc.strerror}",
        hint="Check its directory and the storage under it, or name another file.",
    )
