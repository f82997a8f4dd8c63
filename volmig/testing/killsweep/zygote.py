"""Handing runs to processes that do nothing but fork; see :mod:`volmig.testing.killsweep.serving`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import IO, Self, cast

from volmig.testing.killsweep.scenario import Scenario

_SERVER = "volmig.testing.killsweep.serving"


@dataclass(kw_only=True)
class Job:
    """One run: an act, and the processes that recover it, each killed at its point but the last one."""

    scenario: str
    directory: str
    kills: list[str] = field(default_factory=list)
    """Where the act is killed, then the first recovery, and so on."""
    keep: bool = False
    """Leave a copy of the run's directory behind, with ``.kept`` at its name."""


@dataclass(kw_only=True)
class Outcome:
    """What a run has shown."""

    problems: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    """Points that the first process passed that was not killed: of the act, or of the recovery after the last kill."""
    missed: str = ""
    """The kill that did not come, since the process has ended before or took another way."""
    seconds: float = 0.0
    """Time that that process took."""


def load_scenarios(name: str) -> dict[str, Scenario]:
    """Return scenarios by name from ``module:ATTRIBUTE``, a sequence of them."""
    module, _, attribute = name.partition(":")
    found: Sequence[Scenario] = getattr(importlib.import_module(module), attribute)
    return {scenario.name: scenario for scenario in found}


class Zygote:
    """A zygote as the process sees it that gives it work; one job at a time.

    :param scenarios: where they are: ``module:ATTRIBUTE``.
    """

    def __init__(self, scenarios: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _SERVER, scenarios],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, job: Job) -> Outcome:
        """Do a job and return what it has shown.

        :raises RuntimeError: when the zygote has died.
        """
        stdin, stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        stdin.write(json.dumps(asdict(job)) + "\n")
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that forks has ended with status {self._process.wait()}")
        return Outcome(**json.loads(answer))

    def close(self) -> None:
        """Let it end, after what it does at present."""
        with contextlib.suppress(BrokenPipeError):
            cast(IO[str], self._process.stdin).close()
        cast(IO[str], self._process.stdout).close()
        self._process.wait()
