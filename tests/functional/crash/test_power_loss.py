"""Migrations during which the power fails at many points, and that are recovered from what was on the disks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volmig.testing.killsweep import Report, Scenario, Sweep, Zygote

from ..storage import must_be_root
from . import power

SCENARIOS_AT = "tests.functional.crash.power:ALL"

MOST_POINTS = 25


@pytest.fixture(autouse=True)
def nothing_mounted(tmp_path: Path) -> Iterator[None]:
    """See to it that nothing is mounted when a test ends, and that the test has seen to it itself."""
    must_be_root()
    yield
    left = power.unmount_below(tmp_path)
    assert not left, f"these were left mounted: {left}"


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("scenario", power.SCENARIOS, ids=lambda scenario: scenario.name)
def test_power_fails(scenario: Scenario, sweep: Callable[..., Report], is_long: bool) -> None:
    report = sweep(scenario, most=MOST_POINTS)
    assert report.points >= MOST_POINTS * 9 // 10, report.missed
    assert report.again > 0


def test_what_was_not_synced_is_lost(tmp_path: Path) -> None:
    bench = power.PowerBench({"volume_driver": "file"})
    run = tmp_path / "run"
    run.mkdir()
    try:
        bench.begin(run)
        place = run / "left"
        for name in ("synced", "renamed", "changed"):
            (place / name).write_text(name)
            sync(place / name)
        sync(place)
        (place / "renamed").rename(place / "elsewhere")
        (place / "changed").write_text("lost")
        (place / "new").write_text("lost")
        bench.interrupted(run)
        found = {path.name: path.read_text() for path in place.iterdir()}
        assert found["synced"] == "synced"
        assert found["renamed"] == "renamed"
        assert found["changed"] != "lost"
        assert found.keys() == {"synced", "renamed", "changed"}
    finally:
        bench.end(run)


def test_missing_syncs_are_found(zygotes: list[Zygote], tmp_path: Path) -> None:
    """The sweep must fail for a driver that makes no name durable, or it has not looked."""
    sweep = Sweep(zygotes, tmp_path)
    assert not sweep.do(power.DEFECTIVE, []).problems, "as long as the power does not fail there is nothing to be found"
    outcome = sweep.do(power.DEFECTIVE, ["commit (intent retire_source) after#1"])
    assert not outcome.missed
    assert outcome.problems


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
