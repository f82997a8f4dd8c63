"""The promises of a store about transactions."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from volmig import errors
from volmig.model import (
    Phase,
    Reservation,
)
from volmig.store import Store
from volmig.testing._store_clock import StoreClock
from volmig.testing._store_values import (
    LEASE_SECONDS,
    OTHER_POOL,
    POOL,
    START,
    add_migration,
    add_volume,
    in_threads,
    make_migration,
    make_note,
    make_retired,
    make_volume,
    read_volume,
)


class TransactionContract(StoreClock):
    """Changes happen together, one writer after another."""

    def test_change_is_seen_after_the_block(self, store: Store) -> None:
        added = add_volume(store)
        assert read_volume(store, added.id) == added

    def test_change_is_seen_inside_its_own_block(self, store: Store) -> None:
        with store.writing() as writer:
            added = writer.add_volume(make_volume())
            changed = writer.update_volume(added, name="renamed")
            assert writer.get_volume(added.id) == changed
            assert list(writer.list_volumes()) == [changed]

    @pytest.mark.parametrize(
        "error", [RuntimeError("stop"), KeyboardInterrupt(), errors.StoreConflict(kind="x", id="y")]
    )
    def test_exception_undoes_everything(self, store: Store, error: BaseException) -> None:
        volume = add_volume(store)
        migration = add_migration(store)
        kept = make_retired(delete_after=START)
        with store.writing() as writer:
            writer.add_retired(kept)
            writer.reserve(Reservation(id="kept", host=POOL, size_bytes=10), limit_bytes=100)
            writer.save_checkpoint(migration, b"kept")

        def change_everything() -> None:
            with store.writing() as writer:
                writer.add_volume(make_volume())
                writer.update_volume(volume, name="changed")
                writer.remove_volume(writer.get_volume(volume.id))
                writer.add_migration(make_migration())
                claimed = writer.claim_migration(migration.id, owner="worker", lease_seconds=LEASE_SECONDS)
                writer.update_migration(claimed, phase=Phase.STARTING)
                writer.save_checkpoint(claimed, b"changed")
                writer.remove_checkpoint(migration.id)
                writer.request_pause(migration.id, requested_by="someone")
                writer.set_bandwidth_limit(migration.id, bandwidth_limit_bytes=7)
                writer.request_cancel(migration.id, requested_by="someone")
                writer.append_journal(make_note(migration.id))
                writer.release("kept")
                writer.reserve(Reservation(id="new", host=OTHER_POOL, size_bytes=10), limit_bytes=100)
                writer.schedule_retired(kept.id, delete_after=START + timedelta(days=1))
                writer.begin_deletion(kept.id)
                writer.remove_retired(kept.id)
                writer.add_retired(make_retired())
                raise error

        with pytest.raises(type(error)) as caught:
            change_everything()
        assert caught.value is error
        with store.reading() as reader:
            assert list(reader.list_volumes()) == [volume]
            assert list(reader.list_migrations()) == [migration]
            assert list(reader.read_journal(migration.id)) == []
            assert list(reader.list_retired()) == [kept]
            assert reader.load_checkpoint(migration.id) == b"kept"
            assert [item.id for item in reader.list_reservations()] == ["kept"]
        with store.writing() as writer, pytest.raises(errors.DestinationTooSmall):
            writer.reserve(Reservation(id="large", host=POOL, size_bytes=91), limit_bytes=100)

    def test_a_refused_call_spoils_nothing_else(self, store: Store) -> None:
        present = add_volume(store)
        with store.writing() as writer:
            first = writer.add_volume(make_volume())
            with pytest.raises(errors.VolumeExists):
                writer.add_volume(make_volume(id=present.id))
            with pytest.raises(errors.StoreConflict):
                writer.update_volume(replace(present, version=7), name="other")
            second = writer.add_volume(make_volume())
        with store.reading() as reader:
            assert {item.id for item in reader.list_volumes()} == {present.id, first.id, second.id}

    def test_reader_keeps_its_view(self, store: Store) -> None:
        volume = add_volume(store)

        def rename() -> None:
            with store.writing() as writer:
                writer.update_volume(volume, name="renamed")

        thread = threading.Thread(target=rename)
        with store.reading() as reader:
            before = list(reader.list_volumes())
            thread.start()
            # A store may let the writer pass, or make it wait for the reader.
            thread.join(timeout=0.2)
            assert list(reader.list_volumes()) == before
            assert reader.get_volume(volume.id) == volume
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert read_volume(store, volume.id).name == "renamed"

    def test_reader_does_not_see_what_is_not_committed(self, store: Store) -> None:
        volume = add_volume(store)
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(read_volume(store, volume.id).name))
        with store.writing() as writer:
            writer.update_volume(volume, name="first")
            thread.start()
            thread.join(timeout=0.2)
            # Either it has read the old state by now, or it waits and reads the new one.
            assert seen in ([], [volume.name])
        thread.join(timeout=30)
        assert seen in ([volume.name], ["first"])

    def test_writers_lose_no_update(self, store: Store) -> None:
        volume = add_volume(store, metadata={"count": "0"})
        each = 10

        def count_up(_: int) -> None:
            for _ in range(each):
                with store.writing() as writer:
                    present = writer.get_volume(volume.id)
                    writer.update_volume(present, metadata={"count": str(int(present.metadata["count"]) + 1)})

        in_threads(4, count_up)
        final = read_volume(store, volume.id)
        assert final.metadata == {"count": str(4 * each)}
        assert final.version == volume.version + 4 * each

    def test_only_one_of_many_changes_of_one_state_is_made(self, store: Store) -> None:
        volume = add_volume(store)

        def rename(number: int) -> bool:
            try:
                with store.writing() as writer:
                    writer.update_volume(volume, name=f"name {number}")
            except errors.StoreConflict:
                return False
            return True

        assert in_threads(6, rename).count(True) == 1
        assert read_volume(store, volume.id).version == volume.version + 1
