"""Removing a file only if it is a certain one.

No system call removes a name on the condition of what it names. So the file is first moved, under its own name, into a
private directory ``.volmig-gone-<random>`` beside it. There nobody exchanges it; it is looked at, and removed or moved
back. Since its name stays its name, it can be put back after a crash in between.

The private directory is locked while it is worked on. Whoever finds one that is not locked puts back what is in it,
unless the name has been taken meanwhile: then it stays where it is. Nothing is removed that was not looked at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator

from volmig import errors
from volmig.drivers import _syscalls
from volmig.drivers._directory import OpenDirectory

_PRIVATE = re.compile(r"\.volmig-gone-[0-9a-f]{16}")
_RESERVE = ".volmig-gone-0000000000000000"
"""Made beforehand and kept, for when there is no room to make another."""
_ATTEMPTS = 5
LOG = logging.getLogger(__name__)


def identify(directory: OpenDirectory, name: str) -> str:
    """Return the identity of a file. :raises FileNotFoundError: when there is none."""
    fd = directory.open(name, os.O_RDONLY)
    try:
        return _syscalls.file_identity(fd)
    finally:
        os.close(fd)


def remove(directory: OpenDirectory, name: str, identity: str, require_unused: Callable[[int], None]) -> None:
    """Remove the file of this name if it has this identity; succeed when there is none, or another one.

    :param require_unused: called with the descriptor of the file before it is removed; raises when it is in use.
    :raises volmig.errors.ObjectDisplaced: when another file was moved away, and its name taken before it could be moved
        back; its data is whole, at the path that the error names.
    """
    for found in _private_names(directory):
        with _taken_over(directory, found) as private:
            if private is not None:  # of a call that has died: ended, or undone
                _end(directory, private, name, identity, require_unused, strict=False)
    for _ in range(_ATTEMPTS):
        try:
            if not _is_same(directory, name, identity, require_unused):
                return
        except FileNotFoundError:
            return
        with _private(directory) as private:
            if private is None:
                continue
            try:
                directory.move(name, private, name)
            except (FileNotFoundError, FileExistsError):
                # The name has gone, or the private directory before it was locked; or, where locks are not offered,
                # another call uses the reserve.
                continue
            if _end(directory, private, name, identity, require_unused, strict=True):
                return
    raise errors.UnsafePath(path=directory.path / name, reason="it was exchanged again and again while being removed")


def prepare(directory: OpenDirectory) -> None:
    """Put back what dead processes have moved away and not removed, and have a private directory in reserve."""
    with contextlib.suppress(OSError):  # there already; or full or read-only, where it can be done without
        os.mkdir(_RESERVE, mode=0o700, dir_fd=directory.fd)
    for found in _private_names(directory):
        with _taken_over(directory, found) as private:
            for name in [] if private is None else os.listdir(private.fd):  # noqa: PTH208  (a descriptor, not a path)
                if private is not None and not _put_back(directory, private, name):
                    LOG.warning(
                        "%s was being removed when its name was taken; it is kept, look at it and remove it",
                        private.path / name,
                    )


def _is_same(directory: OpenDirectory, name: str, identity: str, require_unused: Callable[[int], None]) -> bool:
    fd = directory.open(name, os.O_RDONLY)
    try:
        if _syscalls.file_identity(fd) != identity:
            return False
        require_unused(fd)
        return True
    finally:
        os.close(fd)


def _end(
    directory: OpenDirectory,
    private: OpenDirectory,
    name: str,
    identity: str,
    require_unused: Callable[[int], None],
    *,
    strict: bool,
) -> bool:
    """Remove the moved file if it is the one, and else move it back; *strict* minds when that cannot be.

    :returns: False when somebody else has put it back meanwhile, which happens where locks are not offered.
    """
    same = False
    try:
        same = _is_same(private, name, identity, require_unused)
    except FileNotFoundError:
        return False
    finally:
        if not same and not _put_back(directory, private, name) and strict:
            raise errors.ObjectDisplaced(path=directory.path / name, kept=private.path / name)
    if same:
        try:
            os.unlink(name, dir_fd=private.fd)
        except FileNotFoundError:
            return False
        private.sync()
    return True


def _put_back(directory: OpenDirectory, private: OpenDirectory, name: str) -> bool:
    """Move a file back to its name; False when the name is taken by another, and nothing has changed."""
    try:
        private.move(name, directory, name)
    except FileExistsError:
        here = os.stat(name, dir_fd=private.fd, follow_symlinks=False)
        there = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        if not os.path.samestat(here, there):
            return False
        os.unlink(name, dir_fd=private.fd)  # a move that stopped between two names
        private.sync()
    except FileNotFoundError:  # nothing to put back
        pass
    return True


@contextlib.contextmanager
def _private(directory: OpenDirectory) -> Iterator[OpenDirectory | None]:
    """Make a private directory, locked; None when somebody took it for abandoned before it was."""
    name = f".volmig-gone-{secrets.token_hex(8)}"
    try:
        os.mkdir(name, mode=0o700, dir_fd=directory.fd)
    except OSError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        name = _RESERVE
    directory.sync()
    with _taken_over(directory, name) as private:
        yield private


def _private_names(directory: OpenDirectory) -> list[str]:
    with os.scandir(directory.fd) as entries:
        return [entry.name for entry in entries if _PRIVATE.fullmatch(entry.name)]


@contextlib.contextmanager
def _taken_over(directory: OpenDirectory, name: str) -> Iterator[OpenDirectory | None]:
    """Open a private directory and lock it; None when another has it. In the end it is removed, if it is empty."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
    except OSError as exc:
        if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise
        yield None
        return
    try:
        if not _try_lock(fd):
            yield None
            return
        try:
            yield OpenDirectory(fd=fd, path=directory.path / name)
        finally:
            if name != _RESERVE:
                with contextlib.suppress(OSError):  # not empty, or removed already; an empty one does no harm
                    os.rmdir(name, dir_fd=directory.fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """Lock an open directory; False when another has it locked. Where locks are not offered, all is open to all."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
