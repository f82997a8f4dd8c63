"""The promises of a store about room in pools, retired objects and the identities of storage."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from volmig import errors
from volmig.model import (
    Reservation,
)
from volmig.store import Store
from volmig.testing._store_clock import StoreClock
from volmig.testing._store_values import (
    OTHER_POOL,
    POOL,
    START,
    in_threads,
    make_retired,
)


class RoomContract(StoreClock):
    """No pool is promised away twice, no retired object is forgotten, and no storage is taken for another."""

    def test_reservations_stay_within_the_limit(self, store: Store) -> None:
        with store.writing() as writer:
            writer.reserve(Reservation(id="a", host=POOL, size_bytes=60), limit_bytes=100)
            writer.reserve(Reservation(id="elsewhere", host=OTHER_POOL, size_bytes=100), limit_bytes=100)
        with pytest.raises(errors.DestinationTooSmall) as caught, store.writing() as writer:
            writer.reserve(Reservation(id="b", host=POOL, size_bytes=41), limit_bytes=100)
        assert caught.value.fields == {"pool": POOL, "free": 40, "needed": 41}
        with store.writing() as writer:
            writer.reserve(Reservation(id="b", host=POOL, size_bytes=40), limit_bytes=100)
        with store.reading() as reader:
            assert {(item.id, item.size_bytes) for item in reader.list_reservations(POOL)} == {("a", 60), ("b", 40)}
            assert {item.id for item in reader.list_reservations()} == {"a", "b", "elsewhere"}
            assert list(reader.list_reservations("no such pool")) == []

    def test_figures_from_before_a_release_are_refused(self, store: Store) -> None:
        with store.writing() as writer:
            assert writer.count_releases(POOL) == 0
            writer.reserve(Reservation(id="a", host=POOL, size_bytes=60), limit_bytes=100, releases=0)
            writer.release("a")
            writer.release("a")
            assert writer.count_releases(POOL) == 1
            assert writer.count_releases(OTHER_POOL) == 0
        with pytest.raises(errors.StoreConflict), store.writing() as writer:
            writer.reserve(Reservation(id="b", host=POOL, size_bytes=60), limit_bytes=100, releases=0)
        with store.writing() as writer:
            writer.reserve(Reservation(id="b", host=POOL, size_bytes=60), limit_bytes=100, releases=1)

    def test_lower_limit_leaves_no_room(self, store: Store) -> None:
        with store.writing() as writer:
            writer.reserve(Reservation(id="a", host=POOL, size_bytes=60), limit_bytes=100)
            with pytest.raises(errors.DestinationTooSmall) as caught:
                writer.reserve(Reservation(id="b", host=POOL, size_bytes=1), limit_bytes=50)
        assert caught.value.fields["free"] == 0

    def test_repeated_reservation_counts_once(self, store: Store) -> None:
        reservation = Reservation(id="a", host=POOL, size_bytes=60)
        for limit_bytes in (100, 100, 10):
            with store.writing() as writer:
                writer.reserve(reservation, limit_bytes=limit_bytes)
        with store.writing() as writer:
            writer.reserve(Reservation(id="b", host=POOL, size_bytes=40), limit_bytes=100)
        with store.reading() as reader:
            assert len(reader.list_reservations(POOL)) == 2

    @pytest.mark.parametrize("values", [{"size_bytes": 61}, {"host": OTHER_POOL}])
    def test_other_reservation_with_the_same_id(self, store: Store, values: dict[str, Any]) -> None:
        reservation = Reservation(id="a", host=POOL, size_bytes=60)
        with store.writing() as writer:
            writer.reserve(reservation, limit_bytes=100)
        with pytest.raises(errors.InternalError, match="60"), store.writing() as writer:
            writer.reserve(replace(reservation, **values), limit_bytes=100)
        with store.reading() as reader:
            assert list(reader.list_reservations()) == [reservation]

    def test_negative_reservation_is_refused(self, store: Store) -> None:
        with pytest.raises(errors.InternalError), store.writing() as writer:
            writer.reserve(Reservation(id="a", host=POOL, size_bytes=-1), limit_bytes=100)

    def test_released_room_is_free_again(self, store: Store) -> None:
        for _ in range(3):
            with store.writing() as writer:
                writer.reserve(Reservation(id="a", host=POOL, size_bytes=100), limit_bytes=100)
            for _ in range(2):
                with store.writing() as writer:
                    writer.release("a")
        with store.reading() as reader:
            assert list(reader.list_reservations()) == []

    def test_threads_cannot_reserve_beyond_the_limit(self, store: Store) -> None:
        def reserve(number: int) -> bool:
            try:
                with store.writing() as writer:
                    reservation = Reservation(id=f"migration {number}", host=POOL, size_bytes=30)
                    writer.reserve(reservation, limit_bytes=100)
            except errors.DestinationTooSmall:
                return False
            return True

        assert in_threads(8, reserve).count(True) == 3
        with store.reading() as reader:
            assert sum(item.size_bytes for item in reader.list_reservations(POOL)) == 90

    def test_retired_objects_become_due(self, store: Store) -> None:
        never = make_retired(delete_after=None)
        late = make_retired(delete_after=START + timedelta(hours=2))
        soon = make_retired(
            delete_after=START + timedelta(hours=1), provider_location="loc", identity="42:7", format="qcow2"
        )
        with store.writing() as writer:
            for item in (never, late, soon):
                writer.add_retired(item)
        with store.reading() as reader:
            assert list(reader.list_retired()) == [soon, late, never]
            assert list(reader.list_retired(due_at=START)) == []
            assert list(reader.list_retired(due_at=START + timedelta(hours=1))) == [soon]
            # Without a time nothing was decided about its deletion, so that it is never due by itself.
            assert list(reader.list_retired(due_at=START + timedelta(days=9999))) == [soon, late]

    def test_retired_objects_of_a_migration_and_a_volume(self, store: Store) -> None:
        def at(hours: int) -> datetime:
            return START + timedelta(hours=hours)

        first = make_retired(migration_id="m", volume_id="v", delete_after=at(1))
        second = make_retired(migration_id="m", volume_id="w", delete_after=at(2))
        third = make_retired(migration_id="n", volume_id="v", delete_after=at(3))
        never = make_retired(migration_id="n", volume_id="v")
        with store.writing() as writer:
            for item in (never, third, second, first):
                writer.add_retired(item)
        with store.reading() as reader:
            assert list(reader.list_retired(migration_id="m")) == [first, second]
            assert list(reader.list_retired(volume_id="v")) == [first, third, never]
            assert list(reader.list_retired(volume_id="v", migration_id="n")) == [third, never]
            assert list(reader.list_retired(volume_id="v", due_at=at(2))) == [first]
            assert list(reader.list_retired(volume_id="v", migration_id="n", due_at=at(3))) == [third]
            assert list(reader.list_retired(migration_id="M")) == []

    def test_retired_object_becomes_due_earlier_or_later(self, store: Store) -> None:
        item, other = make_retired(), make_retired(delete_after=START)
        with store.writing() as writer:
            writer.add_retired(item)
            writer.add_retired(other)
        for hours in (5, 1, 1):
            time = START + timedelta(hours=hours)
            with store.writing() as writer:
                writer.schedule_retired(item.id, delete_after=time.astimezone(timezone(timedelta(hours=-7))))
            with store.reading() as reader:
                assert list(reader.list_retired()) == [other, replace(item, delete_after=time)]
                assert list(reader.list_retired(due_at=time - timedelta(microseconds=1))) == [other]

    def test_time_for_the_deletion_of_what_is_gone(self, store: Store) -> None:
        with pytest.raises(errors.StoreConflict) as caught, store.writing() as writer:
            writer.schedule_retired("gone", delete_after=START)
        assert caught.value.fields == {"kind": "retired object", "id": "gone"}

    def test_a_deletion_begins_once(self, store: Store) -> None:
        item, other = make_retired(delete_after=START), make_retired(delete_after=START)
        with store.writing() as writer:
            writer.add_retired(item)
            writer.add_retired(other)
            begun = writer.begin_deletion(item.id)
            assert begun.deletion_begun_at is not None
            assert begun == replace(item, deletion_begun_at=begun.deletion_begun_at)
        with store.writing() as writer:
            assert writer.begin_deletion(item.id) == begun
            writer.update_retired(item.id, attempts=1, last_error="busy")
            writer.schedule_retired(item.id, delete_after=START + timedelta(hours=1))
        with store.reading() as reader:
            present = {each.id: each.deletion_begun_at for each in reader.list_retired()}
        assert present == {item.id: begun.deletion_begun_at, other.id: None}

    def test_a_deletion_of_what_is_gone_does_not_begin(self, store: Store) -> None:
        with pytest.raises(errors.StoreConflict) as caught, store.writing() as writer:
            writer.begin_deletion("gone")
        assert caught.value.fields == {"kind": "retired object", "id": "gone"}

    def test_time_for_a_deletion_needs_a_zone(self, store: Store) -> None:
        item = make_retired()
        with store.writing() as writer:
            writer.add_retired(item)
        with pytest.raises(errors.InternalError), store.writing() as writer:
            writer.schedule_retired(item.id, delete_after=START.replace(tzinfo=None))
        with store.reading() as reader:
            assert list(reader.list_retired()) == [item]

    def test_failed_deletion_is_recorded(self, store: Store) -> None:
        item = make_retired(delete_after=START)
        with store.writing() as writer:
            writer.add_retired(item)
            writer.update_retired(item.id, attempts=3, last_error="no route " * 100)
        with store.reading() as reader:
            assert list(reader.list_retired()) == [replace(item, attempts=3, last_error="no route " * 100)]

    def test_failed_deletion_of_what_is_gone(self, store: Store) -> None:
        with pytest.raises(errors.StoreConflict), store.writing() as writer:
            writer.update_retired("gone", attempts=1, last_error="")

    def test_forgotten_object_is_gone(self, store: Store) -> None:
        item = make_retired()
        with store.writing() as writer:
            writer.add_retired(item)
        for _ in range(2):
            with store.writing() as writer:
                writer.remove_retired(item.id)
        with store.reading() as reader:
            assert list(reader.list_retired()) == []

    def test_retired_id_is_taken_once(self, store: Store) -> None:
        item = make_retired()
        with store.writing() as writer:
            writer.add_retired(item)
        with pytest.raises(errors.InternalError, match=item.id), store.writing() as writer:
            writer.add_retired(item)

    def test_retired_object_keeps_its_identity(self, store: Store) -> None:
        items = [make_retired(identity="é" * 2000), make_retired(identity=""), make_retired(identity=None)]
        with store.writing() as writer:
            for item in items:
                writer.add_retired(item)
        with store.reading() as reader:
            assert {item.id: item.identity for item in reader.list_retired()} == {
                item.id: item.identity for item in items
            }

    def test_identity_of_storage_is_kept_for_each_backend(self, store: Store) -> None:
        with store.reading() as reader:
            assert reader.get_storage_identity("host1@fast") is None
        with store.writing() as writer:
            writer.set_storage_identity("host1@fast", "first")
            assert writer.get_storage_identity("host1@fast") == "first"
            writer.set_storage_identity("host1@slow", "é" * 2000)
        with store.reading() as reader:
            assert reader.get_storage_identity("host1@fast") == "first"
            assert reader.get_storage_identity("host1@slow") == "é" * 2000
            assert reader.get_storage_identity("HOST1@fast") is None
            assert reader.get_storage_identity("host1@fas") is None

    @pytest.mark.parametrize("later", ["first", "second"])
    def test_identity_of_storage_is_replaced(self, store: Store, later: str) -> None:
        for identity in ("first", later):
            with store.writing() as writer:
                writer.set_storage_identity("host1@fast", identity)
        with store.reading() as reader:
            assert reader.get_storage_identity("host1@fast") == later

    def test_identity_of_storage_is_undone_with_its_transaction(self, store: Store) -> None:
        with store.writing() as writer:
            writer.set_storage_identity("host1@fast", "first")

        def change_and_fail() -> None:
            with store.writing() as writer:
                writer.set_storage_identity("host1@fast", "second")
                writer.set_storage_identity("host1@slow", "second")
                raise RuntimeError("undo")

        with pytest.raises(RuntimeError, match="undo"):
            change_and_fail()
        with store.reading() as reader:
            assert reader.get_storage_identity("host1@fast") == "first"
            assert reader.get_storage_identity("host1@slow") is None

    @pytest.mark.parametrize(("backend", "identity"), [("host1@fast", "a\0b"), ("host1@\0", "a"), ("h" * 256, "a")])
    def test_identity_of_storage_that_cannot_be_kept_is_refused(
        self, store: Store, backend: str, identity: str
    ) -> None:
        with pytest.raises(errors.RequestInvalid), store.writing() as writer:
            writer.set_storage_identity(backend, identity)
        with store.reading() as reader:
            assert reader.get_storage_identity(backend.replace("\0", "")) is None
