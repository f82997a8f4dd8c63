"""Migrations that nobody runs, and programs that outlived them."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.doctor.support import add_migration, findings, gone_process, mend, note, serious
from tests.unit.engine.world import DESTINATION, SOURCE, pattern_of
from tests.unit.waiting import until
from volmig import doctor
from volmig.manager.processes import ProcessIdentity
from volmig.migration.helpers import helper_facts
from volmig.model import Phase
from volmig.testing import patterns
from volmig.transfer import HelperProcess


def claim(world, migration, *, lease_seconds):
    with world.store.writing() as transaction:
        return transaction.claim_migration(migration.id, owner="here:1:gone", lease_seconds=lease_seconds)


def test_queued_migration_without_worker_is_taken_by_the_command(make_world):
    world = make_world()
    volume = world.create()
    migration = world.engine.request_migration(volume.id, DESTINATION)
    [found] = findings(world)
    assert (found.code, found.what, found.severity) == ("migration-abandoned", migration.id, "warning")
    assert (found.places, found.words) == ((SOURCE, DESTINATION), ("migration", "recover"))
    assert findings(world, grace_seconds=60) == ()
    for handle in world.engine.recover():
        handle.result()
    assert findings(world) == ()
    patterns.check(world.path(world.engine.show_volume(volume.id)), pattern_of(volume))


def test_migration_whose_lease_is_over(make_world):
    world = make_world()
    migration = world.engine.request_migration(world.create().id, DESTINATION)
    claim(world, migration, lease_seconds=0.01)
    until(lambda: findings(world, grace_seconds=60), 5)
    [found] = findings(world, grace_seconds=60)
    assert "the lease has not been renewed since" in found.explanation
    for handle in world.engine.recover():
        handle.result()
    assert findings(world) == ()


@pytest.mark.parametrize("is_gone", [True, False])
def test_migration_whose_process_has_ended_before_its_lease(make_world, is_gone):
    world = make_world()
    migration = world.engine.request_migration(world.create().id, DESTINATION)
    claimed = claim(world, migration, lease_seconds=3600)
    facts = gone_process() if is_gone else ProcessIdentity.own("here").facts()
    note(world, claimed, "worker", facts | {"owner": claimed.owner}, epoch=claimed.epoch)
    found = findings(world, grace_seconds=60)
    assert [each.code for each in found] == (["migration-abandoned"] if is_gone else [])
    assert all("only then can another take it" in each.explanation for each in found)


def test_paused_migration_is_only_told(make_world):
    world = make_world()
    volume = world.create()
    migration = world.engine.request_migration(volume.id, DESTINATION)
    world.engine.pause_migration(migration.id)
    [found] = findings(world)
    assert (found.code, found.severity) == ("migration-paused", "info")
    assert found.words == ("migration", "resume", migration.id)
    world.engine.resume_migration(migration.id).result()
    assert findings(world) == ()


def test_volume_of_a_paused_migration_is_looked_for(make_world):
    world = make_world()
    volume = world.create()
    world.engine.pause_migration(world.engine.request_migration(volume.id, DESTINATION).id)
    world.path(volume).unlink()
    assert [each.code for each in serious(world)] == ["volume-missing"]


class TestHelpers:
    @pytest.fixture
    def program(self):
        with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
            yield process
            process.kill()

    def facts(self, program):
        from volmig.manager.processes import start_time_ticks

        started = start_time_ticks(program.pid)
        assert started is not None
        helper = HelperProcess(program="sleep", pid=program.pid, start_time_ticks=started)
        return helper_facts(helper, host="here")

    def test_program_of_an_ended_migration_is_stopped(self, make_world, program):
        world = make_world()
        migration = add_migration(world, world.create())
        with world.store.writing() as transaction:
            transaction.update_migration(migration, finished_at=datetime.now(UTC))
        note(world, migration, "helper-process", self.facts(program))
        [found] = findings(world)
        assert (found.code, found.what, found.safe) == ("helper-running", f"sleep ({program.pid})", True)
        assert mend(world)[0].done
        assert program.wait(5) == -9
        assert findings(world) == ()
        assert mend(world, [found])[0].outcome == "it has ended"

    @pytest.mark.parametrize("is_gone", [True, False])
    def test_program_of_a_worker_is_stopped_only_when_that_is_gone(self, make_world, program, is_gone):
        world = make_world()
        migration = world.engine.request_migration(world.create().id, DESTINATION)
        claimed = claim(world, migration, lease_seconds=3600)
        facts = gone_process() if is_gone else ProcessIdentity.own("here").facts()
        note(world, claimed, "worker", facts, epoch=claimed.epoch)
        note(world, claimed, "helper-process", self.facts(program), epoch=claimed.epoch)
        assert ("helper-running" in [each.code for each in findings(world)]) == is_gone
        mend(world)
        assert (program.poll() is None) != is_gone

    def test_program_of_another_boot_or_host_is_none_of_ours(self, make_world, program):
        world = make_world()
        migration = add_migration(world, world.create())
        note(world, migration, "helper-process", self.facts(program) | {"boot": "before"})
        note(world, migration, "helper-process", self.facts(program) | {"host": "there"})
        assert findings(world) == ()


def test_no_false_findings_while_migrations_run(make_world):
    world = make_world()
    volumes = [world.create(name=f"{number}", size_bytes=3 * 65536 + number) for number in range(4)]
    backends = world.engine._backends
    deadline = datetime.now(UTC) + timedelta(seconds=2.5)
    looks = rounds = 0
    pools = [DESTINATION, SOURCE]
    while datetime.now(UTC) < deadline:
        rounds += 1
        handles = [
            world.engine.migrate(volume.id, pools[0], force_host_copy=number % 2 == 0, lock_volume=number == 1)
            for number, volume in enumerate(volumes)
        ]
        passing = world.engine.create_volume(host=SOURCE, size_bytes=4096, name="passing")
        world.engine.extend_volume(passing.id, 8192)
        world.engine.delete_volume(passing.id)
        while not all(handle.status().phase.is_final for handle in handles):
            report = doctor.examine(world.store, backends, grace_seconds=60)
            assert report.findings == ()
            looks += 1
        for handle in handles:
            handle.result()
        pools.reverse()
    assert rounds > 1
    assert looks > 3
    assert findings(world) == ()


def test_migration_that_failed_and_was_undone_leaves_nothing_to_find(make_world):
    world = make_world(kind="path")
    volume = world.create()
    world.fake("right").faults.add("update_migrated_volume:fail")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    assert handle.wait().phase is Phase.ERROR
    assert serious(world) == []
