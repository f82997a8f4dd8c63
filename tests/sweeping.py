"""What tests that sweep share: the processes that fork, and the figures that are told in the end."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from volmig.testing.killsweep import Failure, Report, Scenario, Sweep, Zygote

_REPORTS = pytest.StashKey[list[Report]]()
_SHOWN = 5


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    """Say whether everything is to be tried, however long it takes."""
    return bool(pytestconfig.getoption("--long", default=False))


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """Give what all chance depends on: another one each time, or the one asked for."""
    given = pytestconfig.getoption("--seed", default=None)
    return random.SystemRandom().randrange(1 << 32) if given is None else int(given)


@pytest.fixture(scope="module")
def zygotes(request: pytest.FixtureRequest) -> Iterator[list[Zygote]]:
    """Give processes that fork, for the scenarios that the module names as ``SCENARIOS_AT``."""
    with contextlib.ExitStack() as stack:
        # Half of the time a run waits: for disks, and for copies that are slow on purpose. A module can have its own
        # number, such as one for storage that all of its runs share.
        count = getattr(request.module, "SWEEPERS", 2 * (os.cpu_count() or 1))
        yield [stack.enter_context(Zygote(request.module.SCENARIOS_AT)) for _ in range(count)]


@pytest.fixture
def sweep(
    request: pytest.FixtureRequest, zygotes: list[Zygote], tmp_path: Path, seed: int, is_long: bool
) -> Callable[..., Report]:
    """Give what sweeps a scenario and fails, with the commands that repeat the runs, when something was wrong."""

    def run(scenario: Scenario, *, most: int | None = None, again: float = 1.0, first: Sequence[str] = ()) -> Report:
        report = Sweep(zygotes, tmp_path, seed=seed, long=is_long, again=again).run(scenario, most=most, first=first)
        request.config.stash.setdefault(_REPORTS, []).append(report)
        told = [_told(failure, request.module.SCENARIOS_AT) for failure in report.failures[:_SHOWN]]
        assert not told, f"seed {seed}: {len(report.failures)} runs went wrong, such as\n" + "\n".join(told)
        return report

    return run


def _told(failure: Failure, scenarios: str) -> str:
    return "\n".join([f"again: {failure.command(scenarios)}", *(f"  {problem}" for problem in failure.problems)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell how many points there were."""
    reports = config.stash.get(_REPORTS, [])
    if not reports:
        return
    points, again = sum(report.points for report in reports), sum(report.again for report in reports)
    missed = sum(len(report.missed) for report in reports)
    terminalreporter.section("kill sweep")
    for report in reports:
        terminalreporter.write_line(str(report))
    terminalreporter.write_line(f"kill points: {points} (+{again} killed again during recovery), {missed} missed")
