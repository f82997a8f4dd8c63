"""What the engines that let a program copy have in common: steering it, and telling why it failed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from volmig import errors
from volmig.transfer.ends.base import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from volmig.transfer.base import CopyJob
    from volmig.transfer.engines.process import TrackedProcess

_POLL_SECONDS = 0.05
_LIMITED_POLL_SECONDS = 0.002
_FULL = re.compile(r"(?:No space left on device|Disk quota exceeded|File too large)\b")
_OFFSET = re.compile(r"(?:at byte|at offset|offset) (\d+)")
_OWN_DESCRIPTOR = re.compile(r"/+(?:proc/+self|proc/+thread-self|dev)/+fd/+(\d+)")


def path_for_child(path: str) -> str:
    """Return an absolute path by which another process finds what this process finds under *path*."""
    match = _OWN_DESCRIPTOR.fullmatch(path)
    return f"/proc/{os.getpid()}/fd/{match[1]}" if match else str(Path(path).absolute())


class Account(Protocol):
    """Knows how far a program is."""

    position: int
    """Where it was last seen to be."""

    def update(self) -> tuple[int, int]:
        """Return how many bytes were dealt with, and how many are to be charged, since the last call."""


def follow(job: CopyJob, process: TrackedProcess, account: Account) -> int:
    """Steer a program, and report its progress, until it ends; return how far it was seen to be.

    It is stopped while the copy is paused, and, for moments, while it is ahead of the bandwidth limit.

    :raises volmig.errors.TransferCancelled: within 0.1 s; the program still runs then, unless the deadline passed.
    """
    flushing = False
    wait = _LIMITED_POLL_SECONDS if job.control.limit_bytes else _POLL_SECONDS
    while process.wait(wait) is None:
        if job.control.expired:
            process.kill()
        if job.control.cancelled:
            raise job.control.cancellation()
        moved, charged = account.update()
        if moved:
            job.advance(moved, 0)
        delay = job.control.charge(charged)
        if delay > 0 or job.control.paused:
            process.hold()
        else:
            process.go_on()
        wait = max(_LIMITED_POLL_SECONDS, min(delay, _POLL_SECONDS)) if job.control.limit_bytes else _POLL_SECONDS
        if account.position == job.size_bytes and not flushing:
            flushing = True
            job.flushing()
    return account.position


class PercentAccount:
    """How far a program is that tells percents; in between, what the system counts that it moves fills in.

    Charged is what the system counts, where it does, and otherwise what the program tells.

    :param percent: finds, in the program's output, how much it has done; the last match counts.
    """

    def __init__(self, process: TrackedProcess, size_bytes: int, percent: re.Pattern[str]) -> None:
        self.position = 0
        self._process = process
        self._pattern = percent
        self._size = size_bytes
        self._percent = 0.0
        self._moved = 0
        self._moved_at_percent = 0

    def update(self) -> tuple[int, int]:
        told_percents = self._pattern.findall(self._process.output())
        percent = float(told_percents[-1]) if told_percents else 0.0
        moved = max(self._process.moved_bytes(), self._moved)
        if percent > self._percent:
            self._percent, self._moved_at_percent = percent, moved
        told = int(self._size * min(self._percent, 100.0) / 100)
        next_told = int(self._size * min(self._percent + 1, 100.0) / 100)
        likely = min(told + moved - self._moved_at_percent, max(told, next_told - 1))
        position = max(self.position, min(likely, self._size))
        done, self.position = position - self.position, position
        charged, self._moved = (moved - self._moved, moved) if moved else (done, 0)
        return done, charged


def failure(job: CopyJob, program: str, status: int | None, said: str, position: int) -> errors.VolmigError:
    """Return the error for a program that failed.

    :param said: what it wrote to its standard error, with the names that people know.
    """
    lines = [line.strip().removeprefix(f"{program}: ") for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if not line.startswith("warning: ")]
    text = complaints[-1][:400] if complaints else f"it ended with {_status_text(status)} and no word"
    source, destination = name_of(job.source), name_of(job.destination)
    found = _OFFSET.search(text)
    offset = int(found[1]) if found else position
    if _FULL.search(text) or status == -signal.SIGXFSZ:
        return errors.DiskFull(path=destination, offset=offset)
    named, bare = _names_in(text, source, destination)
    reads = re.search(r"\bread(?:ing)?\b", bare) is not None or named == [source]
    return errors.TransferFailed(path=source if reads else destination, offset=offset, reason=f"{program}: {text}")


def _names_in(text: str, *names: str) -> tuple[list[str], str]:
    """Return which names are in a text, and the text without them: a name may hold any word, and another name."""
    found = []
    for name in sorted(names, key=len, reverse=True):
        if name in text:
            found.append(name)
            text = text.replace(name, "")
    return found, text


def run_quietly(job: CopyJob, process: TrackedProcess, told: Callable[[str], str] = lambda text: text) -> None:
    """Let a short program run to its end, unless the copy is cancelled.

    :raises volmig.errors.VolmigError: when it fails.
    """
    job.on_process(process.helper)
    job.control.check()
    process.begin()
    while (status := process.wait(_POLL_SECONDS)) is None:
        if job.control.expired:
            process.kill()
        if job.control.cancelled:
            raise job.control.cancellation()
    if status:
        raise failure(job, process.program, status, told(process.stderr()), 0)


def _status_text(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {-status}"
    return f"status {status}"
