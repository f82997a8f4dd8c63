"""Killing a scenario at each of its points, and once more while it is being recovered."""

from __future__ import annotations

import math
import random
import shlex
import statistics
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from volmig.testing.killsweep.marks import Kill
from volmig.testing.killsweep.scenario import Scenario
from volmig.testing.killsweep.zygote import Job, Outcome, Zygote

_LONG_FACTOR = 20


@dataclass(kw_only=True)
class Failure:
    """A run after which something was wrong."""

    scenario: str
    kills: Sequence[str]
    problems: Sequence[str]

    def command(self, scenarios: str) -> str:
        """Return the command that does this run again.

        :param scenarios: where they are: ``module:ATTRIBUTE``.
        """
        words = ["python", "-m", "volmig.testing.killsweep", "--scenarios", scenarios, "--scenario", self.scenario]
        for kill in self.kills:
            words += ["--point", kill]
        return shlex.join(words)


@dataclass(kw_only=True)
class Report:
    """What a sweep has shown."""

    scenario: str
    passed: int = 0
    """Points, and instants, at which it could be killed."""
    points: int = 0
    """Points at which the act was killed."""
    again: int = 0
    """Runs in which the recovery was killed, too."""
    missed: list[str] = field(default_factory=list)
    """Kills that did not come: the process took another way, or was faster."""
    recoveries_seconds: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        times = self.recoveries_seconds or [0.0]
        return (
            f"{self.scenario}: kill points: {self.points} of {self.passed} "
            f"(+{self.again} killed again during recovery), {len(self.missed)} missed, {len(self.failures)} failed; "
            f"recovery: median {statistics.median(times):.3f} s, longest {max(times):.3f} s"
        )


class Sweep:
    """Does the runs of scenarios, several at a time.

    :param zygotes: who does them; as many runs go on at once.
    :param directory: where the runs have their directories.
    :param seed: of all that is left to chance.
    :param long: kill at every pair of points, and at many more instants.
    :param again: part of the points after which the recovery is killed as well, unless the sweep is long; 0 to 1.
    """

    def __init__(
        self, zygotes: Sequence[Zygote], directory: Path, *, seed: int = 0, long: bool = False, again: float = 1.0
    ) -> None:
        self.seed = seed
        self._again = again
        self._idle = list(zygotes)
        self._workers = len(zygotes)
        self._directory = directory
        self._long = long
        self._lock = threading.Lock()
        self._runs = 0

    def run(self, scenario: Scenario, *, most: int | None = None, first: Sequence[str] = ()) -> Report:
        """Kill a scenario everywhere.

        :param most: at no more points than this, chosen by chance, unless the sweep is long.
        :param first: points that are among them in any case, and that the scenario must have.
        :returns: what was found; its failures are empty when all was well.
        """
        report = Report(scenario=scenario.name)
        whole = self.do(scenario, [])
        self._note(report, scenario, [], whole)
        if not whole.problems:
            with ThreadPoolExecutor(self._workers if scenario.bench.in_parallel else 1) as pool:
                kills = [*whole.points, *self._instants(scenario, whole)]
                report.passed = len(kills)
                report.missed += [point for point in first if point not in kills]
                if most is not None and not self._long and most < len(kills):
                    asked = [point for point in first if point in kills]
                    rest = [kill for kill in kills if kill not in asked]
                    chance = self._chance(f"{scenario.name} {most}")
                    kills = [*asked, *chance.sample(rest, max(0, min(len(rest), most - len(asked))))]
                # With at least one of them, however few there are.
                again = set(self._chance(f"{scenario.name} again").sample(kills, math.ceil(self._again * len(kills))))
                for _ in pool.map(lambda kill: self._kill_at(report, scenario, kill, again=kill in again), kills):
                    pass
        return report

    def do(self, scenario: Scenario, kills: Iterable[str], *, keep: bool = False) -> Outcome:
        """Do one run, killed at these points: the act, then each recovery.

        :param keep: leave a copy of the run's directory behind, with ``.kept`` at its name.
        """
        with self._lock:
            zygote = self._idle.pop()
            self._runs += 1
            directory = self._directory / f"{scenario.name}-{self._runs}"
        try:
            return zygote.run(Job(scenario=scenario.name, directory=str(directory), kills=list(kills), keep=keep))
        finally:
            with self._lock:
                self._idle.append(zygote)

    def _kill_at(self, report: Report, scenario: Scenario, kill: str, *, again: bool) -> None:
        """Kill the act at a point; and with *again* once more so, with the recovery killed as well."""
        outcome = self.do(scenario, [kill])
        self._note(report, scenario, [kill], outcome)
        if outcome.missed or outcome.problems:
            return
        seconds = outcome.points if self._long else [self._chance(f"{scenario.name} {kill}").choice(outcome.points)]
        for second in seconds if again or self._long else ():
            self._note(report, scenario, [kill, second], self.do(scenario, [kill, second]))

    def _instants(self, scenario: Scenario, whole: Outcome) -> Iterator[str]:
        """Yield instants spread over the whole act, none of them at a point."""
        chance = self._chance(scenario.name)
        for _ in range(scenario.instants * (_LONG_FACTOR if self._long else 1)):
            yield str(Kill(point=whole.points[0], seconds=chance.uniform(0, whole.seconds)))

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")  # noqa: S311  (it need not be secret)

    def _note(self, report: Report, scenario: Scenario, kills: Sequence[str], outcome: Outcome) -> None:
        with self._lock:
            if outcome.problems:
                report.failures.append(Failure(scenario=scenario.name, kills=kills, problems=outcome.problems))
            if outcome.missed:
                report.missed.append(" then ".join(kills))
            elif len(kills) == 1:
                report.points += 1
                report.recoveries_seconds.append(outcome.seconds)
            elif kills:
                report.again += 1
