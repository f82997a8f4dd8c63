"""Requests for a few volumes from several processes at once, some of which are killed; and the model, for longer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.unit.engine.model import EngineMachine
from tests.unit.engine.races import Ledger, bring_to_rest, check_record, grown
from volmig.model import Volume
from volmig.store.sql import SqlStore
from volmig.testing import patterns

from .cli_support import environment
from .race_worker import database, open_engine

ROOT = Path(__file__).parents[2]
HOSTS = ("here@left#left", "here@right#right")
SIZE = 300_001
PROCESSES, THREADS = 4, 4


def path_of(directory: Path, volume: Volume) -> Path:
    pool = volume.host.rpartition("#")[2]
    return directory / "fake" / pool / pool / (volume.provider_id or volume.backend_name)


def start(directory: Path, number: int, count: int, volumes: list[str]) -> subprocess.Popen[str]:
    wanted = {
        "directory": str(directory),
        "number": number,
        "threads": THREADS,
        "count": count,
        "volumes": volumes,
        "hosts": HOSTS,
    }
    command = [sys.executable, "-m", "tests.functional.race_worker", json.dumps(wanted)]
    variables = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("killed", [0, 2])
def test_four_processes(tmp_path: Path, killed: int, measured: Callable[[str], None]) -> None:
    store = SqlStore(database(tmp_path))
    with open_engine(tmp_path, store) as engine:
        volumes = {}
        for number in range(4):
            made = engine.create_volume(host=HOSTS[number % 2], size_bytes=SIZE + number)
            patterns.fill(path_of(tmp_path, made), patterns.holed(made.size_bytes, seed=number))
            volumes[made.id] = made
        # Those that are to be killed do not come to an end by themselves.
        counts = [100_000 if number < killed else 60 for number in range(PROCESSES)]
        workers = [start(tmp_path, number, count, list(volumes)) for number, count in enumerate(counts)]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "begun\n"
            for worker in workers[:killed]:
                time.sleep(random.uniform(0.2, 1.5))
                worker.kill()
            codes = [worker.wait(120) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
        assert codes == [-9] * killed + [0] * (PROCESSES - killed)
        bring_to_rest(engine)
        ledger = Ledger()
        for told in sorted(tmp_path.glob("told-*")):
            ledger.add(Ledger.read(told.read_text()))
        assert ledger.defects == []
        left = [now for each in volumes.values() if (now := check_record(engine, each, ledger)) is not None]
        check_storage(tmp_path, store, left, volumes)
        measured(
            f"granted: {dict(Counter(kind for kind, _, _ in ledger.granted))}, "
            f"refused: {dict(Counter(kind for kind, _, _ in ledger.refused))}, unanswered: {ledger.unanswered}"
        )
    store.close()


def check_storage(directory: Path, store: SqlStore, left: list[Volume], before: dict[str, Volume]) -> None:
    """Every volume is whole at its place, and nothing else is anywhere."""
    with store.reading() as view:
        assert view.list_reservations() == []
        # What a call of an earlier worker may make yet is looked for when that call must be over.
        assert view.list_retired(due_at=view.now()) == []
        assert view.list_checkpoints() == []
    pools = {name: directory / "fake" / name / name for name in ("left", "right")}
    for name, pool in pools.items():
        visible = {path.name for path in pool.iterdir() if not path.name.startswith(".")}
        assert visible == {path_of(directory, each).name for each in left if each.host.endswith(f"#{name}")}
    snapshots = {path.name for pool in pools.values() for path in pool.glob(".snapshot-*")}
    assert snapshots == {f".snapshot-volume-{snapshot.id}" for each in left for snapshot in each.snapshots}
    seeds = {volume_id: number for number, volume_id in enumerate(before)}
    for now in left:
        pattern = patterns.holed(before[now.id].size_bytes, seed=seeds[now.id])
        patterns.check(path_of(directory, now), grown(pattern, now))


class SqlMachine(EngineMachine):
    store = "sqlite"


TestModelInMemory = EngineMachine.TestCase
TestModelInSqlite = SqlMachine.TestCase
TestModelInMemory.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModelInSqlite.settings = settings(TestModelInMemory.settings, max_examples=30)
