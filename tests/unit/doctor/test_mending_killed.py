"""Mending that ends anywhere, and is done again."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.doctor.support import add_migration, findings, mend, put
from tests.unit.engine.world import DESTINATION, SOURCE, pattern_of
from volmig.doctor import mend as mend_in
from volmig.model import Phase, Reservation, RetiredObject
from volmig.testing import patterns


class Killed(BaseException):
    """The process is gone: nobody catches this."""


class Fuse:
    """Lets so many events pass, and then kills."""

    def __init__(self, passes):
        self.left = passes

    def burn(self):
        if self.left == 0:
            raise Killed
        self.left -= 1


class FusedStore:
    """A store whose commits count: the kill comes before or after one."""

    def __init__(self, store, fuse):
        self._store, self._fuse = store, fuse

    def reading(self):
        return self._store.reading()

    @contextlib.contextmanager
    def writing(self):
        with self._store.writing() as transaction:
            yield transaction
            self._fuse.burn()
        self._fuse.burn()

    def close(self):
        """Nothing is held."""


def make_everything(world):
    """Make one of everything that is mended, and return the volumes."""
    copied = world.create(name="copied")
    copy = add_migration(world, copied)
    put(world, "right", f"volume-{copy.destination_id}", b"half")
    locked = world.create(name="locked")
    lock = add_migration(world, locked, Phase.CANCELLED)
    world.change(locked, migration_id=lock.id)
    retired = world.create(name="retired")
    put(world, "right", f"volume-{retired.id}", b"old!")
    with world.store.writing() as transaction:
        transaction.save_checkpoint(copy, b"data")
        transaction.reserve(Reservation(id=copy.id, host=DESTINATION, size_bytes=1), limit_bytes=2**30)
        transaction.add_retired(
            RetiredObject(
                id="retired",
                migration_id="",
                volume_id=retired.id,
                host=DESTINATION,
                name_id=retired.id,
                size_bytes=4,
                delete_after=datetime.now(UTC) - timedelta(hours=1),
            )
        )
    return [copied, locked, retired]


@pytest.mark.parametrize("passes", range(14))
def test_killed_at_any_commit_or_deletion_and_done_again(make_world, monkeypatch, passes):
    world = make_world()
    volumes = make_everything(world)
    found = findings(world)
    assert sorted(each.code.value for each in found) == [
        "checkpoint-stale",
        "leftover-copy",
        "reservation-stale",
        "retired-overdue",
        "volume-locked",
    ]
    fuse = Fuse(passes)
    backend = world.engine._backends.get("right")
    delete = backend.delete_object

    def fused_delete(volume, identity):
        fuse.burn()
        delete(volume, identity)
        fuse.burn()

    monkeypatch.setattr(backend, "delete_object", fused_delete)
    with contextlib.suppress(Killed):
        mend_in(FusedStore(world.store, fuse), world.engine._backends, found, grace_seconds=0)
    monkeypatch.undo()
    for volume in volumes:
        patterns.check(world.path(volume), pattern_of(volume))
    mend(world)
    assert findings(world) == ()
    assert mend(world) == []
    assert world.objects("right") == []
    assert [volume.host for volume in world.rows()["volumes"]] == [SOURCE] * 3
    assert all(volume.migration_id is None for volume in world.rows()["volumes"])


def test_one_that_fails_keeps_no_other_from_being_mended(make_world):
    world = make_world(kind="path")
    world.engine.list_backends()
    make_everything(world)
    world.fake("right").faults.add("delete_object:fail")
    outcomes = {each.finding.code.value: each for each in mend(world)}
    assert {code for code, each in outcomes.items() if not each.done} == {"leftover-copy", "retired-overdue"}
    assert all("fault delete_object:fail" in each.outcome for each in outcomes.values() if not each.done)
    world.fake("right").faults.clear()
    assert all(each.done for each in mend(world))
    assert findings(world) == ()
