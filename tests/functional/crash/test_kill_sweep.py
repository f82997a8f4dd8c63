"""Migrations that are killed everywhere, and recovered; see volmig.testing.killsweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from volmig.model import EntryKind, JournalEntry
from volmig.store.sql import SqlStore
from volmig.testing.killsweep import Report, Scenario, Sweep, Zygote, load_scenarios

SCENARIOS_AT = "volmig.testing.killsweep.cases:SCENARIOS"

SEGMENT_BYTES = 16 * 1024 * 1024
LEAST_POINTS = 10
MOST_POINTS = 48
"""How many points of each scenario, chosen by chance and others each time; with ``--long`` it is all of them."""
AGAIN = 0.25
"""Part of the points after which the recovery is killed as well; with ``--long`` it is killed at each of its own."""


@pytest.mark.parametrize("checkpoints", [1, 5])
def test_goes_on_from_the_checkpoint(zygotes: list[Zygote], tmp_path: Path, checkpoints: int) -> None:
    """Else the sweep would also pass if each copy began afresh."""
    outcome = Sweep(zygotes, tmp_path).do(
        load_scenarios(SCENARIOS_AT)["copy"], [f"commit (checkpoint) after#{checkpoints}"], keep=True
    )
    assert not outcome.missed
    assert not outcome.problems
    (kept,) = tmp_path.glob("*.kept")
    store = SqlStore(f"sqlite:///{kept}/state/volmig.db")
    try:
        with store.reading() as view:
            (migration,) = view.list_migrations()
            resumed = [entry.data["bytes_resumed"] for entry in view.read_journal(migration.id) if is_copy(entry)]
    finally:
        store.close()
    assert len(resumed) == 1
    assert resumed[0] >= checkpoints * SEGMENT_BYTES


def is_copy(entry: JournalEntry) -> bool:
    return entry.kind is EntryKind.DONE and entry.subject == "copy"


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("scenario", load_scenarios(SCENARIOS_AT).values(), ids=lambda scenario: scenario.name)
def test_killed_everywhere(scenario: Scenario, sweep: Callable[..., Report]) -> None:
    report = sweep(scenario, most=MOST_POINTS, again=AGAIN)
    assert report.points >= LEAST_POINTS, "the scenario passes too few points to have shown anything"
    assert report.again > 0
    # An instant may come after the end, and a way through a race be another one; a point is there again.
    assert len(report.missed) <= scenario.instants + report.points // 10, report.missed
