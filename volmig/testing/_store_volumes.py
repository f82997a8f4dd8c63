"""The promises of a store about volumes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given

from volmig import errors
from volmig.model import (
    VOLUME_TRANSITIONS,
    MigrationStatus,
    Volume,
    VolumeStatus,
)
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.testing._store_clock import StoreClock
from volmig.testing._store_values import (
    OTHER_POOL,
    ROUND_TRIP,
    START,
    VOLUMES,
    ManualClock,
    add_volume,
    make_volume,
    read_volume,
)


class VolumeContract(StoreClock):
    """Volumes are kept, found, and changed from a known state."""

    def test_new_volume_has_version_and_times(self, store: Store, clock: ManualClock) -> None:
        with store.writing() as writer:
            before = writer.now()
            added = writer.add_volume(make_volume(version=9, created_at=START - timedelta(days=1)))
            after = writer.now()
        assert added.version == 1
        assert added.created_at is not None
        assert added.created_at.utcoffset() == timedelta(0)
        assert before <= added.created_at <= after
        assert added.updated_at == added.created_at

    def test_now_is_in_utc(self, store: Store) -> None:
        with store.reading() as reader:
            assert reader.now().utcoffset() == timedelta(0)

    def test_volume_id_is_taken_once(self, store: Store) -> None:
        volume = add_volume(store)
        with pytest.raises(errors.VolumeExists) as caught, store.writing() as writer:
            writer.add_volume(make_volume(id=volume.id, name="other"))
        assert caught.value.fields["volume"] == volume.id
        assert read_volume(store, volume.id) == volume

    def test_unknown_volume_is_named(self, store: Store) -> None:
        with store.reading() as reader, pytest.raises(errors.VolumeNotFound) as caught:
            reader.get_volume("nothing")
        assert caught.value.fields["volume"] == "nothing"

    def test_update_raises_version_and_time(self, store: Store, clock: ManualClock) -> None:
        volume = add_volume(store)
        self.pass_time(clock, 1)
        with store.writing() as writer:
            changed = writer.update_volume(volume, host=OTHER_POOL, name_id="moved", metadata={"a": "b"})
        assert volume.updated_at is not None
        assert changed.updated_at is not None
        assert changed.updated_at > volume.updated_at
        expected = replace(
            volume, host=OTHER_POOL, name_id="moved", metadata={"a": "b"}, version=2, updated_at=changed.updated_at
        )
        assert changed == expected
        assert read_volume(store, volume.id) == expected

    def test_update_from_an_old_state_is_a_conflict(self, store: Store) -> None:
        volume = add_volume(store)
        with store.writing() as writer:
            changed = writer.update_volume(volume, name="second")
        with pytest.raises(errors.StoreConflict) as caught, store.writing() as writer:
            writer.update_volume(volume, name="third")
        assert caught.value.fields == {"kind": "volume", "id": volume.id}
        assert read_volume(store, volume.id) == changed

    def test_update_changes_only_what_is_named(self, store: Store) -> None:
        volume = add_volume(store)
        forged = replace(volume, name="forged", size_bytes=1)
        with store.writing() as writer:
            changed = writer.update_volume(forged, status_reason="why")
        assert (changed.name, changed.size_bytes) == (volume.name, volume.size_bytes)

    def test_removed_volume_is_gone(self, store: Store) -> None:
        volume = add_volume(store)
        with store.writing() as writer:
            writer.remove_volume(volume)
        with store.reading() as reader, pytest.raises(errors.VolumeNotFound):
            reader.get_volume(volume.id)
        with pytest.raises(errors.StoreConflict), store.writing() as writer:
            writer.update_volume(volume, name="ghost")
        with pytest.raises(errors.StoreConflict), store.writing() as writer:
            writer.remove_volume(volume)

    def test_removal_from_an_old_state_is_a_conflict(self, store: Store) -> None:
        volume = add_volume(store)
        with store.writing() as writer:
            changed = writer.update_volume(volume, name="second")
        with pytest.raises(errors.StoreConflict), store.writing() as writer:
            writer.remove_volume(volume)
        assert read_volume(store, volume.id) == changed

    @pytest.mark.parametrize("name", ["id", "version", "created_at", "updated_at", "no_such_field", "backend_id"])
    def test_fields_that_cannot_be_changed(self, store: Store, name: str) -> None:
        volume = add_volume(store)
        with pytest.raises(errors.InternalError, match=name), store.writing() as writer:
            writer.update_volume(volume, **{name: None})
        assert read_volume(store, volume.id) == volume

    def test_volume_status_follows_the_table(self, store: Store) -> None:
        for present in VolumeStatus:
            for following in VolumeStatus:
                volume = add_volume(store, status=present)
                if following is present or following in VOLUME_TRANSITIONS[present]:
                    with store.writing() as writer:
                        assert writer.update_volume(volume, status=following).status is following
                else:
                    with store.writing() as writer, pytest.raises(errors.InternalError, match=following.value):
                        writer.update_volume(volume, status=following)
                    assert read_volume(store, volume.id) == volume

    @pytest.mark.parametrize(
        "name",
        ["データ", "e\u0301", "\u00e9", "naïve ‮ name", "🗄️", "'; DROP TABLE volumes; --", "%", "_", "a\nb", "Data"],
    )
    def test_volumes_by_name_exactly(self, store: Store, name: str) -> None:
        wanted = add_volume(store, name=name)
        for other in ("data", name + "x", name.upper() + "x", "ab"):
            add_volume(store, name=other)
        with store.reading() as reader:
            assert list(reader.list_volumes(VolumeQuery(name=name))) == [wanted]

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param({"name": "a\0b"}, id="nul"),
            pytest.param({"name": "\udcff"}, id="not text"),
            pytest.param({"name": "x" * 256}, id="too long"),
            pytest.param({"size_bytes": 2**63}, id="too large"),
            pytest.param({"metadata": {"k": "\0"}}, id="nul in metadata"),
        ],
    )
    def test_values_that_cannot_be_kept_are_refused(self, store: Store, values: dict[str, Any]) -> None:
        volume = add_volume(store)
        with pytest.raises(errors.RequestInvalid), store.writing() as writer:
            writer.add_volume(make_volume(**values))
        with pytest.raises(errors.RequestInvalid), store.writing() as writer:
            writer.update_volume(volume, **values)
        with store.reading() as reader:
            assert list(reader.list_volumes()) == [volume]

    def test_a_changed_dict_does_not_change_the_record(self, store: Store) -> None:
        metadata = {"key": "value"}
        volume = add_volume(store, metadata=metadata)
        metadata["key"] = "other"
        got = read_volume(store, volume.id)
        assert isinstance(got.metadata, dict)
        got.metadata["key"] = "third"
        assert read_volume(store, volume.id).metadata == {"key": "value"}

    def test_operation_is_kept_and_changed(self, store: Store) -> None:
        volume = add_volume(store)
        assert volume.operation == {}
        operation = {"name": "extend", "arguments": {"size_bytes": 2**40}, "process": ["host1", 7, None, 1.5, "\0"]}
        with store.writing() as writer:
            changed = writer.update_volume(volume, operation=operation)
        assert (changed.operation, changed.version) == (operation, 2)
        assert read_volume(store, volume.id) == changed
        with store.reading() as reader:
            assert list(reader.list_volumes()) == [changed]
        with store.writing() as writer:
            assert writer.update_volume(changed, operation={}).operation == {}
        assert read_volume(store, volume.id).operation == {}

    def test_a_changed_operation_does_not_change_the_record(self, store: Store) -> None:
        arguments = {"size_bytes": 1}
        volume = add_volume(store, operation={"arguments": arguments})
        arguments["size_bytes"] = 2
        for got in (volume, read_volume(store, volume.id)):
            assert got.operation == {"arguments": {"size_bytes": 1}}
            got.operation["arguments"]["size_bytes"] = 3
        assert read_volume(store, volume.id).operation == {"arguments": {"size_bytes": 1}}
        operation = {"arguments": arguments}
        with store.writing() as writer:
            changed = writer.update_volume(volume, operation=operation)
            arguments["size_bytes"] = 4
            assert writer.get_volume(volume.id) == changed
        assert changed.operation == {"arguments": {"size_bytes": 2}}
        assert read_volume(store, volume.id) == changed

    @pytest.mark.parametrize("value", [float("nan"), object(), b"bytes", {1, 2}])
    def test_operation_that_is_not_json_is_refused(self, store: Store, value: object) -> None:
        volume = add_volume(store)
        with pytest.raises(errors.InternalError, match="JSON"), store.writing() as writer:
            writer.add_volume(make_volume(operation={"key": value}))
        with pytest.raises(errors.InternalError, match="JSON"), store.writing() as writer:
            writer.update_volume(volume, operation={"key": value})
        with store.reading() as reader:
            assert list(reader.list_volumes()) == [volume]

    @ROUND_TRIP
    @given(volume=VOLUMES)
    def test_volume_comes_back_as_it_was(self, store: Store, volume: Volume) -> None:
        volume = replace(volume, id=str(uuid4()))
        with store.writing() as writer:
            added = writer.add_volume(volume)
        got = read_volume(store, volume.id)
        assert got == added
        assert replace(got, version=volume.version, created_at=None, updated_at=None) == volume
        assert type(got.status) is VolumeStatus
        assert type(got.migration_status) is MigrationStatus

    def test_volumes_are_listed_oldest_first(self, store: Store, clock: ManualClock) -> None:
        added = []
        for _ in range(3):
            added.append(add_volume(store))
            self.pass_time(clock, 0.001)
        with store.reading() as reader:
            assert list(reader.list_volumes()) == added

    def test_volumes_of_one_moment_are_listed_by_id(self, store: Store) -> None:
        added = [add_volume(store) for _ in range(5)]
        with store.reading() as reader:
            assert list(reader.list_volumes()) == sorted(added, key=lambda item: (item.created_at, item.id))

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
    def test_pages_together_are_the_list(self, store: Store, clock: ManualClock, limit: int) -> None:
        for number in range(7):
            add_volume(store)
            self.pass_time(clock, 0.001 * (number % 2))
        with store.reading() as reader:
            paged: list[Volume] = []
            marker = None
            while page := reader.list_volumes(VolumeQuery(limit=limit, marker=marker)):
                assert len(page) <= limit
                paged.extend(page)
                assert len(paged) <= 7, "a page repeats what an earlier one had"
                marker = page[-1].id
            assert paged == list(reader.list_volumes())
            assert len(paged) == 7

    def test_pages_of_a_filter(self, store: Store) -> None:
        wanted = {add_volume(store, name="yes").id for _ in range(3)}
        for _ in range(3):
            add_volume(store, name="no")
        with store.reading() as reader:
            first = reader.list_volumes(VolumeQuery(name="yes", limit=2))
            rest = reader.list_volumes(VolumeQuery(name="yes", limit=2, marker=first[-1].id))
        assert (len(first), len(rest)) == (2, 1)
        assert {item.id for item in [*first, *rest]} == wanted

    def test_unknown_marker_is_refused(self, store: Store) -> None:
        with store.reading() as reader:
            with pytest.raises(errors.VolumeNotFound, match="gone"):
                reader.list_volumes(VolumeQuery(marker="gone"))
            with pytest.raises(errors.MigrationNotFound, match="gone"):
                reader.list_migrations(MigrationQuery(marker="gone"))

    @pytest.mark.parametrize("limit", [0, -1])
    def test_page_of_nothing_is_refused(self, store: Store, limit: int) -> None:
        with store.reading() as reader:
            with pytest.raises(errors.RequestInvalid):
                reader.list_volumes(VolumeQuery(limit=limit))
            with pytest.raises(errors.RequestInvalid):
                reader.list_migrations(MigrationQuery(limit=limit))

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ("h", {"h@a#p", "h@a#q", "h@a#p@x", "h@a#p#y", "h@ab#p", "h@A#p"}),
            ("h@a", {"h@a#p", "h@a#q", "h@a#p@x", "h@a#p#y"}),
            ("h@a#p", {"h@a#p"}),
            ("h@a#p@x", {"h@a#p@x"}),
            ("h@ab", {"h@ab#p"}),
            ("h@A", {"h@A#p"}),
            ("h%", set()),
            ("h_", set()),
            ("hh", {"hh@a#p"}),
            ("", set()),
            ("h@", set()),
            ("h@a#", set()),
        ],
    )
    def test_volumes_below_a_host(self, store: Store, wanted: str, expected: set[str]) -> None:
        with store.writing() as writer:
            for host in ("h@a#p", "h@a#q", "h@a#p@x", "h@a#p#y", "h@ab#p", "h@A#p", "hh@a#p", "g@a#p"):
                writer.add_volume(make_volume(host=host))
        with store.reading() as reader:
            assert {item.host for item in reader.list_volumes(VolumeQuery(host=wanted))} == expected

    def test_filters_are_combined(self, store: Store) -> None:
        available = VolumeStatus.AVAILABLE
        wanted = add_volume(store, name="a", status=available, project_id="p")
        add_volume(store, name="b", status=available, project_id="p")
        add_volume(store, name="a", status=VolumeStatus.ERROR, project_id="p")
        add_volume(store, name="a", status=available, project_id="q")
        add_volume(store, name="a", status=available)
        add_volume(store, name="a", status=available, project_id="p", host=OTHER_POOL)
        query = VolumeQuery(name="a", status=available, project_id="p", host="host1@fast", limit=10)
        with store.reading() as reader:
            assert list(reader.list_volumes(query)) == [wanted]
