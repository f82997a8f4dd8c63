"""Running a program and measuring it: wall clock, processor time, memory at its peak."""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LOOKS_MS = (*[1] * 40, *[5] * 12)
"""How long to wait for the end between looks at first, while there is little to go by; then every 20 ms."""
_LATER_MS = 20
_PEAK = re.compile(rb"^VmHWM:\s*(\d+) kB", re.MULTILINE)


class RunFailed(Exception):
    """A run ended with an error; says which."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one run took."""

    wall_seconds: float
    cpu_seconds: float
    """User and system time of the processes, with all their threads and io_uring's workers."""
    peak_bytes: int
    """Largest resident memory of a process."""
    means: str = ""
    """How it was done, where it says so."""


def peak_bytes(pid: int | str) -> int:
    """Return the largest resident memory so far of a process that is running; 0 when it has none any more."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


def run_all(
    commands: Sequence[Sequence[str]],
    *,
    check: Callable[[], None],
    timeout_seconds: float,
    stdout: IO[bytes] | None = None,
) -> Usage:
    """Run the commands one after the other, and return what they took together.

    :param check: called every few hundredths of a second; may raise to give up. The running program is killed then.
    :raises RunFailed: when one fails or takes too long; with what it said.
    """
    cpu_seconds, peak = 0.0, 0
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        for command in commands:
            deadline = began + timeout_seconds
            own_cpu_seconds, own_peak = _run_one(command, check=check, deadline=deadline, stdout=stdout, stderr=said)
            cpu_seconds += own_cpu_seconds
            peak = max(peak, own_peak)
        wall_seconds = time.monotonic() - began
    return Usage(wall_seconds=wall_seconds, cpu_seconds=cpu_seconds, peak_bytes=peak)


def _run_one(
    command: Sequence[str],
    *,
    check: Callable[[], None],
    deadline: float,
    stdout: IO[bytes] | None,
    stderr: IO[bytes],
) -> tuple[float, int]:
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=stdout if stdout is not None else subprocess.DEVNULL,
        stderr=stderr,
        process_group=0,  # the terminal's Ctrl-C is ours to pass on
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        cpu_seconds, peak = _wait(process, check, deadline)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        stderr.seek(0)
        words = stderr.read().decode(errors="replace").strip().splitlines()
        raise RunFailed(f"{Path(command[0]).name} ended with {process.returncode}: {words[-1] if words else 'no word'}")
    return cpu_seconds, peak


def _wait(process: subprocess.Popen[bytes], check: Callable[[], None], deadline: float) -> tuple[float, int]:
    """Wait for the end; return processor time and the peak of memory.

    The kernel counts into a child's ``ru_maxrss`` the memory that its parent had when it was started. Where it is no
    larger than that, what was seen of the child while it ran is taken: its high-water mark, looked at every 1 to 20 ms.
    """
    floor = peak_bytes("self")
    seen = 0
    descriptor = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        for look_ms in itertools.chain(_LOOKS_MS, itertools.repeat(_LATER_MS)):
            seen = max(seen, peak_bytes(process.pid))
            if poller.poll(look_ms):
                break
            check()
            if time.monotonic() > deadline:
                raise RunFailed(f"{process.args[0]!r} took too long")  # type: ignore[index]
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    counted = usage.ru_maxrss * 1024
    return usage.ru_utime + usage.ru_stime, counted if counted > floor or not seen else seen
