"""Objects that belong to nothing: what is deleted, and above all what is not."""

from __future__ import annotations

import os
import shlex
import uuid
from dataclasses import replace

import pytest

from tests.unit.doctor.support import add_migration, codes, findings, mend, put, serious
from tests.unit.engine.world import DESTINATION, KINDS, SOURCE
from volmig.doctor import Code
from volmig.model import EntryKind, JournalEntry, Method, Phase, VolumeStatus


def leave_copy(world, phase=Phase.ERROR, **fields):
    """Return a volume, and the migration that has left a half-made copy of it."""
    volume = world.create()
    migration = add_migration(world, volume, phase, **fields)
    put(world, migration.destination.rpartition("#")[2], f"volume-{migration.destination_id}", b"half")
    return volume, migration


@pytest.mark.parametrize("kind", KINDS)
def test_copy_of_an_ended_migration_is_deleted(make_world, kind):
    world = make_world(kind=kind)
    world.engine.list_backends()
    volume, migration = leave_copy(world)
    [found] = findings(world)
    assert (found.code, found.severity, found.safe) == ("leftover-copy", "warning", True)
    assert (found.what, found.where) == (f"volume-{migration.destination_id}", DESTINATION)
    assert found.command == f"volmig doctor --fix --volume {volume.id}"
    [mended] = mend(world)
    assert mended.done, mended.outcome
    assert world.objects("right") == []
    assert world.rows()["retired"] == []
    assert findings(world) == ()
    assert world.engine.show_volume(volume.id).host == SOURCE
    # Once more: there is nothing to do.
    assert not mend(world, [found])[0].done
    assert world.objects("left") == [volume.backend_name]


def test_copy_is_no_finding_right_after_the_end(make_world):
    world = make_world()
    leave_copy(world)
    assert findings(world, grace_seconds=2 * 3600) == ()


class TestNeverDeleted:
    """Each of these looks like a leftover, and could be the only copy."""

    def check(self, world, *, code="leftover-copy", reason=""):
        found = next(each for each in findings(world) if each.code == code)
        before = {pool: world.objects(pool) for pool in ("left", "right")}
        assert not found.safe, found
        assert reason in found.explanation
        assert all(not each.done for each in mend(world, [replace(each, safe=True) for each in [found] if each.facts]))
        assert mend(world) == [] or all(each.finding.code != code for each in mend(world))
        assert {pool: world.objects(pool) for pool in ("left", "right")} == before
        return found

    def test_while_the_volume_is_missing(self, make_world):
        world = make_world()
        volume, _ = leave_copy(world)
        world.path(volume).unlink()
        found = self.check(world, reason="not seen whole")
        assert found.words == ("volume", "manage", "--host", DESTINATION, found.what)
        adopted = world.engine.manage_volume(found.what, host=DESTINATION)
        assert world.path(adopted).read_bytes() == b"half"
        assert codes(world) == ["volume-missing"]

    def test_when_the_volume_goes_missing_between_finding_and_mending(self, make_world):
        world = make_world()
        volume, _ = leave_copy(world)
        found = findings(world)
        assert found[0].safe
        world.path(volume).unlink()
        [mended] = mend(world, found)
        assert not mended.done
        assert len(world.objects("right")) == 1

    def test_while_the_volume_is_cut_off(self, make_world):
        world = make_world()
        volume, _ = leave_copy(world)
        os.truncate(world.path(volume), 10)
        self.check(world, reason="not seen whole")

    @pytest.mark.parametrize("is_another", [True, False])
    def test_when_the_volumes_object_was_exchanged(self, make_world, is_another):
        world = make_world()
        volume, migration = leave_copy(world)
        identity = world.engine._backends.of(volume).identify_object(volume)
        with world.store.writing() as transaction:
            transaction.append_journal(
                JournalEntry(
                    migration_id=migration.id,
                    kind=EntryKind.DONE,
                    subject="reserve",
                    actor="someone",
                    data={"identity": identity},
                )
            )
        if is_another:
            empty = world.path(volume).with_name(".empty")
            empty.touch()
            os.truncate(empty, volume.size_bytes)
            empty.rename(world.path(volume))
            self.check(world, reason="is another one")
        else:
            assert mend(world)[0].done

    def test_when_the_volume_is_no_longer_recorded(self, make_world):
        world = make_world()
        volume, _ = leave_copy(world)
        with world.store.writing() as transaction:
            transaction.remove_volume(transaction.get_volume(volume.id))
        world.path(volume).unlink()
        self.check(world, reason="no longer on record")

    def test_when_the_volume_is_in_error(self, make_world):
        world = make_world()
        volume, _ = leave_copy(world)
        world.change(volume, status=VolumeStatus.ERROR)
        self.check(world, reason="went wrong")

    def test_when_the_migration_was_in_doubt(self, make_world):
        world = make_world()
        leave_copy(world, error_code="location-doubtful")
        self.check(world, reason="could not tell")

    def test_when_the_volume_has_the_copys_name_in_another_pool(self, make_world):
        world = make_world()
        volume, migration = leave_copy(world)
        world.path(volume).rename(world.pool("left") / f"volume-{migration.destination_id}")
        world.change(volume, name_id=migration.destination_id)
        found = self.check(world, code="unknown-object", reason="compare both".capitalize())
        assert found.words[:2] == ("volume", "show")

    def test_when_both_names_are_one_file(self, make_world):
        world = make_world()
        volume, migration = leave_copy(world)
        copy = world.pool("right") / f"volume-{migration.destination_id}"
        copy.unlink()
        os.link(world.path(volume), copy)
        found = self.check(world, reason="very object")
        assert found.words == ("volume", "show", volume.id)

    def test_when_a_rollback_goes_to_it(self, make_world):
        world = make_world()
        leave_copy(world, method=Method.ROLLBACK)
        self.check(world, code="unknown-object")

    def test_when_two_migrations_made_it(self, make_world):
        world = make_world()
        _, migration = leave_copy(world)
        add_migration(world, world.create(name="other"), destination_id=migration.destination_id)
        self.check(world, reason="2 migrations")

    def test_when_another_object_takes_its_name_meanwhile(self, make_world, monkeypatch):
        world = make_world()
        _, migration = leave_copy(world)
        found = findings(world)
        path = world.pool("right") / f"volume-{migration.destination_id}"
        driver = world.engine._backends.get("right").driver
        delete = driver.delete_object

        def exchange_first(volume, identity):
            fresh = path.with_name("fresh")
            fresh.write_bytes(b"another one")
            fresh.rename(path)
            delete(volume, identity)

        monkeypatch.setattr(driver, "delete_object", exchange_first)
        mend(world, found)
        assert path.read_bytes() == b"another one"

    def test_object_of_an_unfinished_migration(self, make_world):
        world = make_world()
        volume = world.create()
        migration = add_migration(world, volume, Phase.PAUSED, pause_requested_by="someone")
        world.change(volume, migration_id=migration.id)
        put(world, "right", f"volume-{migration.destination_id}")
        assert serious(world) == []

    def test_unknown_object(self, make_world):
        world = make_world()
        name = f"volume-{uuid.uuid4()}"
        put(world, "right", name, b"x" * 512)
        found = self.check(world, code="unknown-object", reason="may be the only copy")
        assert found.severity == "warning"
        assert found.words == ("volume", "manage", "--host", DESTINATION, name)
        world.engine.manage_volume(name, host=DESTINATION)
        assert findings(world) == ()

    def test_object_of_a_stranger_is_only_told(self, make_world):
        world = make_world()
        put(world, "right", "-rf holiday.img")
        found = self.check(world, code="foreign-object")
        assert found.severity == "info"
        assert shlex.split(found.command)[1:] == list(found.words)
        assert found.words == ("volume", "manage", "--host", DESTINATION, "--", "-rf holiday.img")
        world.engine.manage_volume("-rf holiday.img", host=DESTINATION)
        assert findings(world) == ()

    def test_many_strangers_are_told_together(self, make_world):
        world = make_world()
        for number in range(30):
            put(world, "right", f"photo-{number:02}.img")
        [found] = findings(world)
        assert (found.what, found.code) == ("30 objects", "foreign-object")


class TestTwoBackendsOverOneStorage:
    """The same objects are seen twice: as they should be, and as if they belonged to nothing."""

    @pytest.fixture
    def world(self, make_world, monkeypatch):
        world = make_world()
        left, right = (world.engine._backends.get(name).driver for name in ("left", "right"))
        monkeypatch.setattr(right, "list_objects", lambda _: left.list_objects("left"))
        for method in ("volume_exists", "identify_object", "delete_object", "delete_volume"):
            of_left = getattr(left, method)

            def see(volume, *rest, of_left=of_left):
                return of_left(replace(volume, host=SOURCE), *rest)

            monkeypatch.setattr(right, method, see)
        return world

    def settle_nothing(self, world, volume):
        seen = findings(world)
        assert [(each.code, each.where, each.safe) for each in seen] == [("unknown-object", DESTINATION, False)]
        assert "same storage" in seen[0].explanation
        mend(world, [replace(each, safe=True, code=Code.LEFTOVER_COPY, facts=(volume.backend_id,)) for each in seen])
        assert world.objects("left") == [volume.backend_name]

    def test_volume_is_not_deleted_as_its_own_copy(self, world):
        self.settle_nothing(world, world.create())

    def test_nor_when_its_name_is_that_of_an_ended_migrations_copy(self, world):
        volume = world.create()
        migration = add_migration(world, volume)
        world.path(volume).rename(world.pool("left") / f"volume-{migration.destination_id}")
        self.settle_nothing(world, world.change(volume, name_id=migration.destination_id))

    def test_nor_when_it_was_adopted_under_that_name(self, world):
        volume = world.create()
        migration = add_migration(world, volume)
        name = f"volume-{migration.destination_id}"
        world.path(volume).rename(world.pool("left") / name)
        adopted = world.change(volume, provider_id=name)
        seen = findings(world)
        assert [each.safe for each in seen] == [False]
        forced = replace(seen[0], safe=True, code=Code.LEFTOVER_COPY, facts=(migration.destination_id,))
        assert not mend(world, [forced])[0].done
        assert world.path(adopted).exists()
