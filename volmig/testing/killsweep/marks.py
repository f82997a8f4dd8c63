"""The points at which a process can be killed: counted as they pass, and one of them the end.

A point has a name, such as ``left.create_volume after``, and a number among those of its name: ``left.create_volume
after#2``. So it is found again in another run even when something else, such as a renewed lease, comes in between.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import NoReturn, Self

_KILL = re.compile(r"(?P<point>.+#\d+)(?:\+(?P<seconds>\d+(?:\.\d+)?))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """When a process is to be killed: at a point, or some time after it."""

    point: str
    seconds: float | None = None
    """Time after the point; None for exactly there."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``POINT`` or ``POINT+SECONDS`` means. :raises ValueError: when it is neither."""
        found = _KILL.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no point to kill at: NAME#NUMBER or NAME#NUMBER+SECONDS")
        seconds = found["seconds"]
        return cls(point=found["point"], seconds=None if seconds is None else float(seconds))

    def __str__(self) -> str:
        return self.point if self.seconds is None else f"{self.point}+{self.seconds:.4f}"


class Marks:
    """Counts the points that this process passes, from several threads, and kills it at one.

    :param kill: where; None to count only.
    """

    def __init__(self, kill: Kill | None = None) -> None:
        self.points: list[str] = []
        """The points that were passed, in order."""
        self._kill = kill
        self._numbers: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, name: str) -> None:
        """Note that a point of this name is reached; nothing is done any more if it is the one."""
        with self._lock:
            self._numbers[name] += 1
            point = f"{name}#{self._numbers[name]}"
            self.points.append(point)
            if self._kill is None or self._kill.point != point:
                return
            if self._kill.seconds is None:
                die()
            threading.Thread(target=_die_after, args=(self._kill.seconds,), name="killer", daemon=True).start()


def die() -> NoReturn:
    """End this process as a power switch would: with SIGKILL, here and now."""
    os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(1)


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    die()
