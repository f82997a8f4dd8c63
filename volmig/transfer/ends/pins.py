"""Whether requests of an earlier copy may still be on their way to a destination.

A process that was killed can be gone while requests of it are under way: what was handed to the kernel by io_uring, and
hangs in the storage, is carried out whenever the storage answers. Such a request keeps the open file that it was made
through, and with that the lock on it (flock(2)), which nothing else holds so faithfully.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

_TRIES = 10
_PAUSE_SECONDS = 0.02


def pin(fd: int) -> bool:
    """Hold a shared lock for as long as *fd*, or a request made through it, is there; return whether that can be.

    It cannot on a file system without such locks, nor while somebody holds the file for himself.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_pinned_by_others(fd: int) -> bool:
    """Say whether somebody else may hold such a lock on the file of *fd*, through which nothing is pinned yet."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                # Without such locks nobody can tell.
                return True
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
            return False
        # The system itself looks at devices under a lock, for a moment.
        time.sleep(_PAUSE_SECONDS)
    return True


def writes(flags: int) -> bool:
    """Say whether a file opened with these flags can be written to."""
    return flags & os.O_ACCMODE != os.O_RDONLY
