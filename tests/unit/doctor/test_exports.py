"""Exports that nobody needs: which are found, and which are left to whoever may use them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from tests.unit.doctor.support import add_migration, codes, findings, mend
from tests.unit.engine.world import SOURCE, World
from tests.unit.exporting import NAME
from volmig.model import Attachment, Phase, RetiredObject, VolumeStatus


@pytest.fixture
def world(make_world):
    return make_world(kind="path", left={"volume_driver": NAME})


def export(world, backend_id, *users):
    world.fake("left").exported[backend_id] = list(users)


def test_an_export_that_nobody_needs_is_taken_back(world):
    volume = world.create()
    export(world, volume.id)
    [found] = findings(world)
    assert (found.code, found.severity, found.safe) == ("export-stale", "warning", True)
    assert (found.what, found.where) == (volume.id, SOURCE)
    assert found.command == f"volmig doctor --fix --volume {volume.id}"
    assert [each.code for each in findings(world, volume_id=volume.id)] == ["export-stale"]
    [mended] = mend(world)
    assert mended.done, mended.outcome
    assert world.fake("left").exported == {}
    assert findings(world) == ()
    assert mend(world, [found])[0].outcome == "it is taken back already"


def test_one_that_a_host_uses_is_told_and_stays(world):
    volume = world.create()
    export(world, volume.id, "iqn.of.other")
    [mended] = mend(world)
    assert not mended.done
    assert "iqn.of.other" in mended.outcome
    assert list(world.fake("left").exported) == [volume.id]


def test_one_that_does_not_go_is_not_told_as_mended(world, monkeypatch):
    volume = world.create()
    export(world, volume.id)
    monkeypatch.setattr(world.fake("left"), "remove_export", lambda *_: None)
    [mended] = mend(world)
    assert not mended.done
    assert "still or again" in mended.outcome


def test_what_the_copy_was_called_is_the_volumes(world):
    volume = world.create()
    migration = add_migration(world, volume, Phase.SUCCESS, source="here@right#right", destination=SOURCE)
    export(world, migration.destination_id)
    [found] = findings(world)
    assert (found.what, found.facts, found.safe) == (volume.id, (migration.destination_id,), True)
    assert mend(world)[0].done
    assert world.fake("left").exported == {}


def test_what_no_record_names_is_told_and_left(world):
    export(world, "stranger")
    [found] = findings(world)
    assert (found.code, found.what, found.where, found.safe) == ("export-stale", "stranger", "here@left", False)
    assert mend(world) == []
    assert list(world.fake("left").exported) == ["stranger"]


def use(world, volume, how):
    if how == "attached":
        world.change(volume, attachments=(Attachment(id="a", instance="vm"),), status=VolumeStatus.IN_USE)
    elif how == "migrating":
        migration = add_migration(world, volume, Phase.MIGRATING)
        world.change(volume, migration_id=migration.id)
    elif how == "paused":
        migration = add_migration(world, volume, Phase.PAUSED)
        world.change(volume, migration_id=migration.id)
    elif how == "doubtful":
        world.change(volume, status=VolumeStatus.ERROR, status_reason="it failed")


@pytest.mark.parametrize("how", ["attached", "migrating", "paused", "doubtful"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_what_somebody_may_use_is_left(world, how, when):
    volume = world.create()
    export(world, volume.id)
    found = findings(world)
    use(world, volume, how)
    if when == "before":
        assert "export-stale" not in codes(world)
    else:
        assert not mend(world, found)[0].done
    assert list(world.fake("left").exported) == [volume.id]


def test_the_copy_of_a_migration_that_goes_on_is_left(world):
    volume = world.create(host="here@right#right")
    migration = add_migration(world, volume, Phase.MIGRATING, source="here@right#right", destination=SOURCE)
    export(world, migration.destination_id)
    assert "export-stale" not in codes(world)


def test_old_storage_is_left_to_its_deletion(world):
    volume = world.create(host="here@right#right")
    with world.store.writing() as transaction:
        transaction.add_retired(
            RetiredObject(
                id="r",
                migration_id="m",
                volume_id=volume.id,
                host=SOURCE,
                name_id="old",
                size_bytes=1,
                delete_after=transaction.now() + timedelta(hours=1),
            )
        )
    export(world, "old")
    assert "export-stale" not in codes(world)


def test_what_was_in_use_only_just_now_is_left(world):
    volume = world.create()
    export(world, volume.id)
    assert findings(world, grace_seconds=3600) == ()
    [found] = findings(world)
    assert found.code == "export-stale"


def test_one_that_goes_while_it_is_looked_at_is_no_finding(world, monkeypatch):
    volume = world.create()
    driver = world.fake("left")
    answers = iter([[volume.id], []])
    monkeypatch.setattr(driver, "list_exports", lambda: next(answers))
    assert findings(world) == ()


def test_exports_that_cannot_be_listed_hide_nothing_else(world):
    volume = world.create()
    world.path(volume).unlink()
    world.fake("left").unlisted = "no rights"
    missing, down = findings(world)
    assert missing.code == "volume-missing"
    assert (down.code, down.where, down.what) == ("backend-down", "here@left", "exports of here@left")
    assert "no rights" in down.explanation


def test_an_export_that_is_used_meanwhile_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = world.create()
    driver = world.fake("left")
    driver.exported[volume.id] = []
    found = findings(world)
    look = driver.list_exports

    def attached_meanwhile() -> Sequence[str]:
        monkeypatch.setattr(driver, "list_exports", look)
        world.engine._volumes.attach(volume.id, instance="vm", mountpoint="/dev/vdb")
        return look()

    monkeypatch.setattr(driver, "list_exports", attached_meanwhile)
    [mended] = mend(world, found)
    assert not mended.done
    assert volume.id in driver.exported
