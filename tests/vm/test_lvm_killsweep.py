"""Migrations between LVM backends that are killed at every point, and recovered; see tests/vm/lvm_sweep.py.

Only the process that migrates is killed: the program of LVM's that it has begun goes on, and must do no harm either.
By default some points are swept, those between LVM's commands and the store's among them; ``--long`` takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.sweeping import is_long, seed, sweep, zygotes  # noqa: F401  (fixtures)
from volmig.testing.killsweep import Report, Scenario

from .lvm_sweep import FAST, POOL, SCENARIOS, SLOW, TAGGED, THICK, THIN
from .support import MIB, volume_group

SCENARIOS_AT = "tests.vm.lvm_sweep:SCENARIOS"
SWEEPERS = 1

FIRST: dict[str, Sequence[str]] = {
    "thick-thin": (f"{THIN}.update_migrated_volume: lvrename ended#1",),
    "thin-thick": (f"{THICK}.create_volume: lvcreate begun#1",),
    "pvmove": (f"{TAGGED}.migrate_volume: timeout begun#1",),
}
"""Points that are killed at in any case."""
MOST = 1
"""Of each scenario, when there is not all the time in the world: a run takes about a minute under emulation."""


@pytest.fixture(scope="module", autouse=True)
def groups() -> Iterator[None]:
    with (
        volume_group(THICK, 48 * MIB),
        volume_group(THIN, 64 * MIB, thin_pools={POOL: 32 * MIB}),
        volume_group(TAGGED, 32 * MIB, tags=(FAST, SLOW)),
    ):
        yield


@pytest.mark.timeout(8 * 3600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_everywhere(
    scenario: Scenario,
    sweep: Callable[..., Report],  # noqa: F811
    measured: Callable[[str], None],
) -> None:
    report = sweep(scenario, most=MOST, again=0.0, first=FIRST[scenario.name])
    measured(str(report))
    assert report.passed > 20, "the scenario passes too few points to have shown anything"
    assert report.points >= MOST, report.missed
    assert not report.missed
