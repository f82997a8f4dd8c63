"""Requests for a few volumes from many threads at once: each is granted wholly, or refused without a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.unit.engine.races import Racer, bring_to_rest, check_record, grown, race
from tests.unit.engine.world import DESTINATION, SOURCE, World, pattern_of
from volmig.drivers.fake import FakeDriver
from volmig.model import Snapshot, Volume
from volmig.testing import patterns

HOSTS = (SOURCE, DESTINATION)
THREADS = 16
DELAYED = ("create_volume", "extend_volume", "delete_object", "migrate_volume", "create_snapshot", "retype")


def check_storage(world: World, left: list[Volume], before: dict[str, Volume]) -> None:
    """Every volume is whole at its place, and nothing else is anywhere."""
    rows = world.rows()
    assert rows["reservations"] == []
    with world.store.reading() as view:
        # What a call of an earlier worker may make yet is looked for when that call must be over.
        assert view.list_retired(due_at=view.now()) == []
    for name in ("left", "right"):
        assert world.objects(name) == sorted(world.path(each).name for each in left if each.host.endswith(f"#{name}"))
    for now in left:
        assert world.path(now).stat().st_size == now.size_bytes
        patterns.check(world.path(now), grown(pattern_of(before[now.id]), now))


def snapshots_in(world: World) -> set[str]:
    if world.kind == "file":
        return set()
    found = {path.name for name in ("left", "right") for path in world.pool(name).glob(".snapshot-*")}
    return {name.removeprefix(".snapshot-volume-") for name in found}


@pytest.mark.parametrize("kind", ["file", "path"])
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_sixteen_threads(make_world: Callable[..., World], kind: str, store: str) -> None:
    world = make_world(kind=kind, store=store)
    if kind == "path":
        for name in ("left", "right"):
            driver = world.fake(name)
            assert isinstance(driver, FakeDriver)
            driver.types = {"fast", "slow"}
            for method in DELAYED:
                driver.faults.add(f"{method}:delay=0.003")
    volumes = {each.id: each for each in (world.create(name="data" * number) for number in range(1, 5))}
    racers = [
        Racer(world.engine, list(volumes), HOSTS, seed=f"{kind}-{number}", deletes=number == 0)
        for number in range(THREADS)
    ]
    ledger = race(racers, 40)
    bring_to_rest(world.engine)
    assert ledger.defects == []
    left = [now for each in volumes.values() if (now := check_record(world.engine, each, ledger)) is not None]
    check_storage(world, left, volumes)
    kept: set[Snapshot] = {snapshot for each in left for snapshot in each.snapshots}
    assert snapshots_in(world) == {snapshot.id for snapshot in kept}
    counts = Counter(kind for kind, _, _ in ledger.granted)
    # It was a race, and not all were refused.
    assert counts["metadata"]
    assert counts["attach"]
    assert counts["migrate"]
    assert len(ledger.refused) > THREADS
