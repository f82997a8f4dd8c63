"""Conformance: the life of a volume, its data, and what the driver says of its pools."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from volmig import errors
from volmig.drivers import Capability, ConnectionInfo
from volmig.model import PoolAddress, Volume
from volmig.testing import patterns
from volmig.testing.kit import CONNECTOR, ODD_BYTES, SIZE_BYTES, End, Kit

_SPARSE_BYTES = 64 * 1024 * 1024


class LifecycleConformance:
    """Volumes are made, found, opened, extended and deleted, each as often as one likes."""

    # --- what the driver says of itself -------------------------------------------------------------

    def test_capabilities_are_a_frozenset_of_members(self, kit: Kit) -> None:
        assert isinstance(kit.driver.capabilities, frozenset)
        assert all(isinstance(capability, Capability) for capability in kit.driver.capabilities)

    def test_stats_have_every_required_key(self, kit: Kit) -> None:
        stats = kit.driver.get_volume_stats(refresh=True)
        for key in ("volume_backend_name", "vendor_name", "driver_version", "storage_protocol"):
            assert isinstance(stats.get(key), str), f"{key} is not text"
            assert stats.get(key), f"{key} is empty"
        assert stats["volume_backend_name"] == kit.driver.backend
        assert stats["pools"], "there is no pool"
        assert not stats.get("down_reason"), "the backend says that it is out of service"

    def test_stats_of_pools_are_sound(self, kit: Kit) -> None:
        names = [pool["pool_name"] for pool in kit.pools()]
        assert len(set(names)) == len(names), "two pools have one name"
        for pool in kit.pools():
            total, free = pool["total_capacity_bytes"], pool["free_capacity_bytes"]
            assert type(total) is int
            assert type(free) is int
            assert 0 <= free <= total
            assert 0 <= pool.get("reserved_percentage", 0) <= 100
            assert pool.get("max_over_subscription_ratio", 1.0) >= 1
            assert isinstance(pool.get("location_info", ""), str)
            assert isinstance(pool.get("read_only", False), bool)
            assert all(type(limit) is int for limit in pool.get("limits", {}).values())
            if pool.get("thin_provisioning"):
                assert type(pool.get("provisioned_capacity_bytes")) is int, "a thin pool must say what it has promised"
            PoolAddress.parse(kit.driver.address(pool["pool_name"]))

    def test_stats_count_a_volume(self, kit: Kit) -> None:
        volume = kit.volume(4 * SIZE_BYTES)
        before = kit.pool(volume)
        kit.driver.create_volume(volume)
        during = kit.pool(volume)
        kit.driver.delete_volume(volume)
        after = kit.pool(volume)
        if "provisioned_capacity_bytes" in before:
            assert during["provisioned_capacity_bytes"] == before["provisioned_capacity_bytes"] + volume.size_bytes
            assert after["provisioned_capacity_bytes"] == before["provisioned_capacity_bytes"]
        else:
            assert during["free_capacity_bytes"] <= before["free_capacity_bytes"] - volume.size_bytes

    # --- making and deleting --------------------------------------------------------------------------

    def test_volume_exists_between_create_and_delete(self, kit: Kit) -> None:
        volume = kit.volume()
        assert kit.driver.volume_exists(volume) is False
        kit.driver.create_volume(volume)
        assert kit.driver.volume_exists(volume) is True
        kit.driver.delete_volume(volume)
        assert kit.driver.volume_exists(volume) is False

    def test_create_repeated_succeeds_with_the_same_answer(self, kit: Kit) -> None:
        volume = kit.volume()
        first = kit.driver.create_volume(volume)
        assert kit.driver.create_volume(volume) == first

    def test_create_repeated_leaves_data_alone(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        kit.driver.create_volume(volume)
        kit.check(volume, pattern)

    def test_create_over_an_object_of_another_size_is_refused(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        volume = kit.filled(pattern)
        larger = kit.volume(2 * kit.backend.size(SIZE_BYTES), id=volume.id)
        with pytest.raises(errors.VolmigError):
            kit.driver.create_volume(larger)
        kit.check(volume, pattern)

    def test_delete_of_an_absent_volume_succeeds(self, kit: Kit) -> None:
        kit.driver.delete_volume(kit.volume())
        volume = kit.created()
        kit.driver.delete_volume(volume)
        kit.driver.delete_volume(volume)
        assert kit.driver.volume_exists(volume) is False

    def test_delete_touches_no_other_volume(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        bystander = kit.filled(pattern)
        kit.driver.delete_volume(kit.created())
        kit.check(bystander, pattern)

    def test_a_volume_is_known_by_its_backend_id(self, kit: Kit) -> None:
        volume = kit.created(name_id="0d4f5c1e-0000-4000-8000-00000000c0de")
        assert kit.driver.volume_exists(kit.volume(id=volume.backend_id)) is True
        assert kit.driver.volume_exists(kit.volume(id=volume.id)) is False

    def test_a_volume_is_in_its_own_pool_only(self, kit: Kit) -> None:
        volume = kit.created()
        for number in range(1, len(kit.pools())):
            assert kit.driver.volume_exists(kit.volume(id=volume.id, host=kit.host(number))) is False

    def test_a_restarted_driver_finds_what_is_there(self, kit: Kit) -> None:
        pattern = patterns.holed(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        other = kit.ready(kit.backend.restart())
        assert other.volume_exists(volume) is True
        kit.check(volume, pattern, driver=other)
        other.delete_volume(volume)
        assert kit.driver.volume_exists(volume) is False, "the answer came from memory, not from the storage"

    # --- sizes and data ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("size_bytes", [1, 511, 4096, SIZE_BYTES, ODD_BYTES])
    def test_size_is_exact(self, kit: Kit, size_bytes: int) -> None:
        volume = kit.created(size_bytes)
        with kit.opened(volume) as end:
            assert _size_of(end) == volume.size_bytes

    @pytest.mark.parametrize("name", ["dense", "holed", "edges", "zeroes"])
    def test_data_comes_back(self, kit: Kit, name: str) -> None:
        pattern = patterns.standard(kit.backend.size(ODD_BYTES))[name]
        volume = kit.filled(pattern)
        kit.check(volume, pattern)

    def test_new_volume_reads_as_zeroes_if_claimed(self, kit: Kit) -> None:
        # Written and deleted first, so that storage which is used again shows what it left there.
        kit.driver.delete_volume(kit.filled(patterns.dense(kit.backend.size(ODD_BYTES))))
        volume = kit.created(ODD_BYTES)
        if not kit.claims(Capability.ZEROED_ON_CREATE):
            kit.fill(volume, patterns.zeroes(volume.size_bytes))
        kit.check(volume, patterns.zeroes(volume.size_bytes))

    def test_holes_take_no_room_if_claimed(self, kit: Kit) -> None:
        volume = kit.created(_SPARSE_BYTES if kit.claims(Capability.SPARSE) else SIZE_BYTES)
        if not kit.claims(Capability.SPARSE):
            return
        free = kit.pool(volume)["free_capacity_bytes"]
        kit.fill(volume, patterns.edges(volume.size_bytes), zeroed=True)
        with kit.opened(volume) as end:
            found = None if isinstance(end, io.IOBase) else Path(str(end)).stat()
            if found is not None and stat.S_ISREG(found.st_mode):
                taken = found.st_blocks * 512
            else:
                taken = free - kit.pool(volume)["free_capacity_bytes"]
        assert taken < volume.size_bytes // 4, f"{taken} bytes are allocated for a few bytes of data"

    def test_extend_keeps_data_and_adds_zeroes_if_claimed(self, kit: Kit) -> None:
        old = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(old)
        new_size = kit.backend.size(volume.size_bytes + 77777)
        kit.driver.extend_volume(volume, new_size)
        extended = kit.volume(id=volume.id, size_bytes=new_size)
        if not kit.claims(Capability.ZEROED_ON_CREATE):
            with kit.opened(extended) as end:
                assert _size_of(end) == new_size
                assert _head(end, old.size_bytes) == old.read(0, old.size_bytes)
            return
        kit.check(extended, patterns.Pattern(size_bytes=new_size, data=old.data))

    def test_extend_repeated_succeeds(self, kit: Kit) -> None:
        volume = kit.created()
        new_size = kit.backend.size(2 * SIZE_BYTES + 1)
        kit.driver.extend_volume(volume, new_size)
        kit.driver.extend_volume(volume, new_size)
        with kit.opened(kit.volume(id=volume.id, size_bytes=new_size)) as end:
            assert _size_of(end) == new_size

    def test_extend_never_shrinks(self, kit: Kit) -> None:
        pattern = patterns.dense(2 * kit.backend.size(SIZE_BYTES))
        volume = kit.filled(pattern)
        with pytest.raises(errors.VolmigError):
            kit.driver.extend_volume(volume, kit.backend.size(SIZE_BYTES))
        kit.check(volume, pattern)

    def test_extend_of_a_missing_volume_is_an_error(self, kit: Kit) -> None:
        volume = kit.volume()
        with pytest.raises(errors.VolmigError):
            kit.driver.extend_volume(volume, 2 * SIZE_BYTES)
        assert kit.driver.volume_exists(volume) is False

    # --- connections --------------------------------------------------------------------------------------

    def test_connection_repeated_is_the_same(self, kit: Kit) -> None:
        volume = kit.created()
        first = _connect(kit, volume)
        assert _connect(kit, volume) == first
        kit.driver.terminate_connection(volume, CONNECTOR)

    def test_connection_names_a_path_only_if_claimed(self, kit: Kit) -> None:
        volume = kit.created()
        connection = _connect(kit, volume)
        if kit.claims(Capability.LOCAL_PATH):
            assert Path(connection["data"]["device_path"]).exists()
        else:
            assert connection["driver_volume_type"] != "local", "LOCAL_PATH is not claimed"
        kit.driver.terminate_connection(volume, CONNECTOR)

    def test_connection_of_a_missing_volume_is_an_error(self, kit: Kit) -> None:
        with pytest.raises(errors.VolumeObjectMissing):
            kit.driver.initialize_connection(kit.volume(), CONNECTOR)

    def test_connection_of_a_volume_of_another_size_is_an_error(self, kit: Kit) -> None:
        volume = kit.created()
        wrong = kit.volume(2 * kit.backend.size(SIZE_BYTES), id=volume.id)
        with pytest.raises(errors.VolumeSizeMismatch):
            kit.driver.initialize_connection(wrong, CONNECTOR)

    def test_terminate_without_connection_succeeds(self, kit: Kit) -> None:
        volume = kit.created()
        kit.driver.terminate_connection(volume, CONNECTOR)
        kit.driver.terminate_connection(volume, CONNECTOR)

    # --- handles ----------------------------------------------------------------------------------------------

    def test_handle_reads_and_writes_if_claimed(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.created(pattern.size_bytes)
        if not kit.claims(Capability.FILE_MODE):
            with pytest.raises(errors.UnsupportedOperation):
                kit.driver.open_volume(volume, "rb")
            return
        with kit.driver.open_volume(volume, "r+b") as handle:
            patterns.fill(handle, pattern)
        with kit.driver.open_volume(volume, "r+b") as handle:
            handle.seek(5000)
            assert handle.tell() == 5000
            assert handle.read(10) == pattern.read(5000, 10), "opening to write has changed the data"
        with kit.driver.open_volume(volume, "rb") as handle:
            buffer = bytearray(16)
            assert handle.readinto(buffer) == 16  # type: ignore[attr-defined]
            assert buffer == pattern.read(0, 16)
            assert handle.seek(0, io.SEEK_END) == volume.size_bytes
            patterns.check(handle, pattern)
        kit.check(volume, pattern)

    def test_handle_to_read_cannot_write(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        volume = kit.filled(pattern)
        if kit.claims(Capability.FILE_MODE):
            with kit.driver.open_volume(volume, "rb") as handle, pytest.raises((OSError, ValueError)):
                handle.write(b"x" * 512)
        kit.check(volume, pattern)

    def test_handle_of_a_missing_volume_is_an_error(self, kit: Kit) -> None:
        expected = errors.VolumeObjectMissing if kit.claims(Capability.FILE_MODE) else errors.UnsupportedOperation
        with pytest.raises(expected):
            kit.driver.open_volume(kit.volume(), "rb").close()


def _connect(kit: Kit, volume: Volume) -> ConnectionInfo:
    connection = kit.driver.initialize_connection(volume, CONNECTOR)
    assert isinstance(connection["driver_volume_type"], str)
    assert isinstance(connection["data"], dict)
    return connection


def _size_of(end: End) -> int:
    if isinstance(end, str):
        with Path(end).open("rb") as handle:
            return handle.seek(0, io.SEEK_END)
    return end.seek(0, io.SEEK_END)


def _head(end: End, length: int) -> bytes:
    if isinstance(end, str):
        with Path(end).open("rb") as handle:
            return handle.read(length)
    end.seek(0)
    data = bytearray()
    while len(data) < length and (part := end.read(length - len(data))):
        data += part
    return bytes(data)
