"""Finding the server programs that were started for an export, and ending them and no others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STATE, _START_TIME = 0, 19
"""Positions in ``/proc/PID/stat`` behind the program's name; see proc_pid_stat(5)."""
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A process, unlike every other of this boot."""

    pid: int
    start_time_ticks: int

    def is_running(self) -> bool:
        """Say whether it, or a thread of it, has not ended: until then a request of it may be under way."""
        fields = _stat(self.pid)
        if not fields or int(fields[_START_TIME]) != self.start_time_ticks:
            return False
        if fields[_STATE] not in "ZX":
            return True
        try:
            tasks = [entry.name for entry in (_PROC / str(self.pid) / "task").iterdir()]
        except FileNotFoundError:
            return False
        states = [_stat(self.pid, task) for task in tasks]
        return any(fields and fields[_STATE] not in "ZX" for fields in states)


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def find(program: str, argument: str) -> list[Server]:
    """Return the processes that run *program* with exactly this *argument*, and those that are about to, such as a
    ``sudo`` in front of it.

    The argument must be one that nobody else can have given. Processes that /proc does not show (``hidepid``) are not
    found.
    """
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            server = _seen(int(entry.name), program, argument)
            if server is not None:
                found.append(server)
    return found


def _seen(pid: int, program: str, argument: str) -> Server | None:
    try:
        before = _stat(pid)
        # Its start is looked at before and after, since the number may belong to another process by then.
        if not before or not _runs(pid, program, argument) or not (after := _stat(pid)):
            return None
    except PermissionError:
        return None
    if before[_START_TIME] != after[_START_TIME]:
        return None
    return Server(pid=pid, start_time_ticks=int(before[_START_TIME]))


def end(server: Server, *, program: str, argument: str, kill: Callable[[int, int], None]) -> bool:
    """End a process that :func:`find` gave: ask it, and kill it when it does not; return whether it is gone.

    :param kill: sends a signal (second) to a process (first) that this one may not signal itself.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(server, number, program, argument, kill)
        until = time.monotonic() + _PATIENCE_SECONDS
        while server.is_running():
            if time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
        else:
            return True
    return False


def _signal(server: Server, number: int, program: str, argument: str, kill: Callable[[int, int], None]) -> None:
    try:
        fd = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return
    try:
        # Behind the opening: what the descriptor leads to cannot become another process any more.
        fields = _stat(server.pid)
        is_it = fields and int(fields[_START_TIME]) == server.start_time_ticks
        if not is_it or not _runs(server.pid, program, argument):
            return
        try:
            signal.pidfd_send_signal(fd, number)
        except PermissionError:
            kill(server.pid, number)
        except ProcessLookupError:
            return
    finally:
        os.close(fd)


def _runs(pid: int, program: str, argument: str) -> bool:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        at = words.index(os.fsencode(argument))
    except (OSError, ValueError):
        return False
    return any(word.rpartition(b"/")[2] == os.fsencode(program) for word in words[:at])


def _stat(pid: int, task: str = "") -> list[str]:
    path = _PROC / str(pid) / "task" / task / "stat" if task else _PROC / str(pid) / "stat"
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name in parentheses may hold anything, so that the fields are counted from its end.
    return text.rpartition(")")[2].split()
