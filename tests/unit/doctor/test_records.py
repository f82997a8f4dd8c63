"""Records that nothing needs any more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.doctor.support import add_migration, codes, findings, mend, put
from tests.unit.engine.world import DESTINATION, SOURCE
from volmig.model import Phase, Reservation, RetiredObject, VolumeStatus


def reserve(world, reservation_id, host=DESTINATION):
    with world.store.writing() as transaction:
        transaction.reserve(Reservation(id=reservation_id, host=host, size_bytes=4096), limit_bytes=2**40)


def retire(world, volume, name_id, **fields):
    values = {
        "id": "retired",
        "migration_id": "",
        "volume_id": volume.id,
        "host": DESTINATION,
        "name_id": name_id,
        "size_bytes": 4,
        "delete_after": datetime.now(UTC) - timedelta(hours=1),
    }
    with world.store.writing() as transaction:
        transaction.add_retired(RetiredObject(**(values | fields)))


class TestReservations:
    def test_stale_one_is_released(self, make_world):
        world = make_world()
        migration = add_migration(world, world.create())
        reserve(world, migration.id)
        [found] = findings(world)
        assert (found.code, found.what, found.safe) == ("reservation-stale", migration.id, True)
        assert found.command == "volmig doctor --fix"
        assert mend(world)[0].done
        assert world.rows()["reservations"] == []
        assert mend(world, [found])[0].outcome == "it is released already"

    def test_needed_ones_are_kept(self, make_world):
        world = make_world()
        world.engine.pause_migration(world.engine.request_migration(world.create().id, DESTINATION).id)
        extended = world.change(world.create(name="grows"), status=VolumeStatus.EXTENDING)
        reserve(world, f"extend-{extended.id}", SOURCE)
        assert codes(world, grace_seconds=60) == ["migration-paused"]
        assert len(world.rows()["reservations"]) == 2

    def test_one_that_is_needed_by_then_is_kept(self, make_world):
        world = make_world()
        volume = world.create()
        reserve(world, f"extend-{volume.id}", SOURCE)
        found = findings(world)
        world.change(volume, status=VolumeStatus.EXTENDING)
        assert not mend(world, found)[0].done
        assert len(world.rows()["reservations"]) == 1


class TestCheckpoints:
    def test_that_of_an_ended_migration_is_forgotten(self, make_world):
        world = make_world()
        migration = add_migration(world, world.create())
        with world.store.writing() as transaction:
            transaction.save_checkpoint(migration, b"data")
        [found] = findings(world)
        assert (found.code, found.what, found.safe) == ("checkpoint-stale", migration.id, True)
        assert mend(world)[0].done
        assert findings(world) == ()
        assert mend(world, [found])[0].done

    def test_that_of_an_unfinished_one_is_kept(self, make_world):
        world = make_world()
        volume = world.create()
        migration = add_migration(world, volume, Phase.PAUSED, pause_requested_by="someone")
        world.change(volume, migration_id=migration.id)
        with world.store.writing() as transaction:
            transaction.save_checkpoint(migration, b"data")
        assert codes(world) == ["migration-paused"]


class TestRetired:
    @pytest.mark.parametrize("by_command", [True, False])
    def test_overdue_one_is_deleted(self, make_world, by_command):
        world = make_world()
        volume = world.create()
        put(world, "right", f"volume-{volume.id}", b"old!")
        retire(world, volume, volume.id, attempts=3, last_error="it was locked")
        [found] = findings(world)
        assert (found.code, found.what, found.safe) == ("retired-overdue", f"volume-{volume.id}", True)
        assert "3 times; the last error: it was locked" in found.explanation
        assert found.words == ("migration", "recover")
        if by_command:
            world.engine.recover()
        else:
            assert mend(world)[0].done
        assert world.objects("right") == []
        assert findings(world) == ()

    def test_one_that_is_kept_on_purpose_is_none(self, make_world):
        world = make_world()
        volume = world.create()
        put(world, "right", f"volume-{volume.id}", b"old!")
        retire(world, volume, volume.id, delete_after=datetime.now(UTC) + timedelta(hours=1))
        assert findings(world) == ()

    def test_one_that_a_migration_goes_back_to_is_none(self, make_world):
        world = make_world()
        volume = world.create()
        done = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True, source_retention_seconds=600)
        done.result()
        assert findings(world) == ()
        back = world.engine.request_rollback(done.id)
        [kept] = world.rows()["retired"]
        with world.store.writing() as transaction:
            transaction.schedule_retired(kept.id, delete_after=datetime.now(UTC) - timedelta(hours=1))
        assert codes(world, grace_seconds=60) == []
        world.engine.run_migration(back.id).result()
        assert findings(world) == ()

    def test_it_is_kept_while_the_volume_is_missing(self, make_world):
        world = make_world()
        volume = world.create()
        put(world, "right", f"volume-{volume.id}", b"old!")
        retire(world, volume, volume.id)
        world.path(volume).unlink()
        missing, overdue = findings(world)
        assert (missing.code, overdue.code) == ("volume-missing", "retired-overdue")
        assert missing.places == (SOURCE, DESTINATION)
        assert "is still in" in missing.explanation
        [mended] = mend(world)
        assert not mended.done
        assert world.objects("right") == [f"volume-{volume.id}"]
