"""Setting a backend's storage up and taking it down: never under what is on record."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.unit.manager.world import POOL, SIZE, World
from volmig import errors
from volmig.manager.storage import setup_storage, teardown_storage
from volmig.model import Method, Migration, Phase, RequestContext, Reservation, RetiredObject


class Storage:
    """What a driver does when it makes its own storage; put in the place of the fake driver's refusals."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.is_up = True
        self.calls: list[Any] = []
        self.when_let_go = lambda: None
        self.do_setup = world.driver.do_setup
        monkeypatch.setattr(world.driver, "do_setup", self.find)
        monkeypatch.setattr(world.driver, "setup_storage", self.setup, raising=False)
        monkeypatch.setattr(world.driver, "teardown_storage", self.teardown, raising=False)

    @property
    def backend(self) -> Any:
        return self.world.backends.get("one")

    def find(self, ctxt: RequestContext) -> None:
        self.calls.append("find")
        if not self.is_up:
            raise errors.BackendDown(backend="one", reason="it is taken down")
        self.do_setup(ctxt)

    def setup(self, ctxt: RequestContext) -> None:
        self.calls.append("setup")
        self.is_up = True

    def teardown(self, ctxt: RequestContext, *, delete_data: bool = False) -> None:
        self.calls.append("delete" if delete_data else "teardown")
        self.is_up = False
        self.when_let_go()

    def take_down(self, *, delete_data: bool) -> None:
        teardown_storage(self.world.store, self.backend, delete_data=delete_data)


@pytest.fixture
def storage(world: World, monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(world, monkeypatch)


def a_migration(phase: Phase, **fields: Any) -> Migration:
    values = {"id": "m", "volume_id": "v", "source": "here@two#p", "destination": POOL, "destination_id": "d"}
    return Migration(phase=phase, method=Method.BLOCK, **(values | fields))


def test_it_is_set_up_found_and_taken_down(storage: Storage) -> None:
    assert setup_storage(storage.backend).up
    assert storage.calls == ["setup", "find"]
    storage.take_down(delete_data=False)
    assert storage.calls == ["setup", "find", "teardown"]
    info = storage.backend.info()
    assert (info.up, info.down_reason) == (False, "it is taken down")
    assert setup_storage(storage.backend).up


def test_it_is_taken_down_where_it_cannot_be_set_up(storage: Storage) -> None:
    storage.is_up = False
    storage.take_down(delete_data=True)
    assert storage.calls == ["teardown", "delete"]


def test_volumes_on_record_stay_when_it_is_let_go_of(world: World, storage: Storage) -> None:
    volume = world.create()
    storage.take_down(delete_data=False)
    setup_storage(storage.backend)
    assert world.backends.get("one").volume_exists(volume)


def test_a_volume_on_record_is_not_deleted(world: World, storage: Storage) -> None:
    volume = world.create()
    storage.calls.clear()
    with pytest.raises(errors.BackendInUse, match=volume.id) as caught:
        storage.take_down(delete_data=True)
    assert "volmig volume delete" in caught.value.hint
    assert "volmig volume unmanage" in caught.value.hint
    assert storage.calls == []


def test_a_volume_recorded_meanwhile_is_not_deleted(world: World, storage: Storage) -> None:
    def record() -> None:
        with world.store.writing() as transaction:
            transaction.add_volume(world.record())

    storage.when_let_go = record
    with pytest.raises(errors.BackendInUse, match="volumes"):
        storage.take_down(delete_data=True)
    assert storage.calls == ["teardown"]


@pytest.mark.parametrize("phase", [phase for phase in Phase if not phase.is_final])
@pytest.mark.parametrize("delete_data", [False, True])
@pytest.mark.parametrize("place", ["source", "destination"])
def test_a_migration_under_way_stands_against_it(
    world: World, storage: Storage, phase: Phase, delete_data: bool, place: str
) -> None:
    with world.store.writing() as transaction:
        transaction.add_migration(
            a_migration(phase, **{"source": "here@two#p", "destination": "here@two#q", place: POOL})
        )
    if phase is Phase.PAUSED and not delete_data:
        storage.take_down(delete_data=False)
        return
    with pytest.raises(errors.BackendInUse, match="migrations"):
        storage.take_down(delete_data=delete_data)
    assert storage.calls == []


def test_migrations_elsewhere_and_ended_ones_do_not(world: World, storage: Storage) -> None:
    with world.store.writing() as transaction:
        transaction.add_migration(a_migration(Phase.MIGRATING, destination="here@oneself#p"))
        transaction.add_migration(a_migration(Phase.SUCCESS, id="ended", source=POOL))
    storage.take_down(delete_data=True)


def test_storage_kept_and_room_reserved_stand_against_deleting(world: World, storage: Storage) -> None:
    kept = RetiredObject(
        id="r", migration_id="m", volume_id="v", host=POOL, name_id="n", size_bytes=1, delete_after=datetime.now(UTC)
    )
    with world.store.writing() as transaction:
        transaction.add_retired(kept)
    with pytest.raises(errors.BackendInUse, match="old storage"):
        storage.take_down(delete_data=True)
    with world.store.writing() as transaction:
        transaction.remove_retired("r")
        transaction.reserve(Reservation(id="x", host=POOL, size_bytes=SIZE), limit_bytes=10 * SIZE)
    with pytest.raises(errors.BackendInUse, match="reserved"):
        storage.take_down(delete_data=True)
    assert storage.calls == []


@pytest.mark.parametrize("delete_data", [False, True])
def test_other_drivers_refuse_it(world: World, delete_data: bool) -> None:
    backend = world.backends.get("one")
    with pytest.raises(errors.UnsupportedOperation, match="setting its storage up"):
        setup_storage(backend)
    with pytest.raises(errors.UnsupportedOperation, match="taking its storage down"):
        teardown_storage(world.store, backend, delete_data=delete_data)


@pytest.mark.parametrize("same", [True, False])
def test_volumes_of_another_backend_on_the_same_storage_are_not_deleted(
    world: World, storage: Storage, same: bool
) -> None:
    """Such as thick and thin volumes of one volume group: what is deleted is the group, with all of them."""
    volume = replace(world.record(), host="here@other#pool")
    with world.store.writing() as transaction:
        transaction.add_volume(volume)
        transaction.set_storage_identity("here@one", "the group")
        transaction.set_storage_identity("here@other", "the group" if same else "another")
    if not same:
        storage.take_down(delete_data=True)
        return
    with pytest.raises(errors.BackendInUse, match=volume.id):
        storage.take_down(delete_data=True)
    assert "delete" not in storage.calls
