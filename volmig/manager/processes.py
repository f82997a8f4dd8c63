"""Which process does something, told so that another can see whether it is gone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_STATE, _START_TIME = 0, 19
"""Positions in ``/proc/PID/stat`` behind the program's name; see proc_pid_stat(5)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """A process of this or another host, unlike every other that ever was or will be."""

    host: str
    boot: str
    """The kernel's id of the boot: process ids and start times mean nothing after another."""
    pid_namespace: str
    """In another one, such as a container's, the same ids mean other processes."""
    pid: int
    start_time_ticks: int

    @classmethod
    def own(cls, host: str) -> Self:
        """Return the identity of this process.

        :param host: what this host is called in pool addresses.
        """
        pid = os.getpid()
        return cls(
            host=host,
            boot=boot_id(),
            pid_namespace=_pid_namespace(),
            pid=pid,
            start_time_ticks=start_time_ticks(pid) or 0,
        )

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self | None:
        """Return the identity that :meth:`facts` gave; None when *facts* are none."""
        try:
            return cls(
                host=str(facts["host"]),
                boot=str(facts["boot"]),
                pid_namespace=str(facts["pid_namespace"]),
                pid=int(facts["pid"]),
                start_time_ticks=int(facts["start_time_ticks"]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"

    def is_gone(self, host: str) -> bool:
        """Say whether it has certainly ended, with all its threads; False when nobody can tell from here.

        :param host: what this host is called.
        """
        if self.host != host:
            return False
        if self.boot != boot_id():
            return True
        if self.pid_namespace != _pid_namespace():
            return False
        return not is_running(self.pid, self.start_time_ticks)


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time_ticks(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot; None when there is none."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return int(fields[_START_TIME]) if fields else None


def is_running(pid: int, started_ticks: int) -> bool:
    """Say whether a process, started at that time, has threads that have not ended.

    One that was killed is a zombie only when the last of its threads has ended; until then a request of it may be
    under way in the kernel.
    """
    fields = _stat(Path(f"/proc/{pid}/stat"))
    if not fields or int(fields[_START_TIME]) != started_ticks:
        return False
    if fields[_STATE] not in "ZX":
        return True
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return False
    states = [_stat(task / "stat") for task in tasks]
    return any(fields and fields[_STATE] not in "ZX" for fields in states)


def _stat(path: Path) -> list[str]:
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name in parentheses may hold anything, so that the fields are counted from its end.
    return text.rpartition(")")[2].split()


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
