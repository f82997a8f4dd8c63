"""Conformance: telling what lies in a pool."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from volmig import errors
from volmig.drivers import Capability, StoredObject, VolumeDriver
from volmig.model import PoolAddress, Volume
from volmig.testing import patterns
from volmig.testing.kit import ODD_BYTES, SIZE_BYTES, Kit

_LOOKS = 15
"""How often a pool is listed while volumes come and go in it."""

_STAY_SECONDS = 0.002

_BEGIN_SECONDS = 60.0
"""How long the threads that make them may take to begin."""


class ListingConformance:
    """``list_objects``: the doctor finds by it what is left over, so nothing may be missing or told wrong."""

    def test_list_tells_each_volume_once_if_claimed(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            with pytest.raises(errors.UnsupportedOperation):
                kit.driver.list_objects(_pool(kit.host()))
            return
        before = _listed(kit, kit.host())
        volumes = [kit.created(size) for size in (SIZE_BYTES, ODD_BYTES, 1)]
        found = _listed(kit, kit.host())
        assert len(found) == len(before) + len(volumes)
        for volume in volumes:
            (told,) = _of(found, volume)
            assert told.size_bytes == volume.size_bytes
            assert told.name == (volume.provider_id or volume.backend_name)

    def test_list_of_a_restarted_driver_is_the_same(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            return
        kit.created()
        other = kit.ready(kit.backend.restart())
        assert set(_listed(kit, kit.host(), driver=other)) == set(_listed(kit, kit.host()))

    def test_list_drops_a_deleted_volume(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            return
        kept, deleted = kit.created(), kit.created()
        removed = kit.created()
        assert [len(_of(_listed(kit, kit.host()), volume)) for volume in (kept, deleted, removed)] == [1, 1, 1]
        kit.driver.delete_volume(deleted)
        kit.driver.delete_object(removed, kit.driver.identify_object(removed))
        found = _listed(kit, kit.host())
        assert len(_of(found, kept)) == 1
        assert _of(found, deleted) == []
        assert _of(found, removed) == []

    def test_list_tells_the_backend_id(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            return
        volume = kit.created(name_id="0d4f5c1e-0000-4000-8000-00000000c0de")
        found = _listed(kit, kit.host())
        assert len(_of(found, volume)) == 1
        assert [each for each in found if each.backend_id == volume.id] == []

    def test_list_tells_the_size_after_an_extension(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            return
        volume = kit.created()
        new_size = kit.backend.size(2 * SIZE_BYTES)
        assert [each.size_bytes for each in _of(_listed(kit, kit.host()), volume)] == [volume.size_bytes]
        kit.driver.extend_volume(volume, new_size)
        (told,) = _of(_listed(kit, kit.host()), volume)
        assert told.size_bytes == new_size

    def test_list_is_of_one_pool(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            return
        volume = kit.created()
        for number in range(1, len(kit.pools())):
            assert _of(_listed(kit, kit.host(number)), volume) == []

    @pytest.mark.parametrize("pool", ["", "..", "../..", "no such pool", "a/../b"])
    def test_list_of_an_unknown_pool_is_refused(self, kit: Kit, pool: str) -> None:
        with pytest.raises(errors.VolmigError):
            kit.driver.list_objects(pool)

    def test_list_follows_the_rename_after_a_copy(self, kit: Kit) -> None:
        if not (kit.claims(Capability.LIST) and kit.claims(Capability.RENAME)):
            return
        copy = kit.created()
        original = replace(kit.volume(), size_bytes=copy.size_bytes, host="elsewhere@stranger#pool")
        assert len(_of(_listed(kit, copy.host), copy)) == 1
        update = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
        final = kit.updated(original, update, host=copy.host)
        found = _listed(kit, copy.host)
        (told,) = _of(found, final)
        assert told.size_bytes == copy.size_bytes
        assert _of(found, copy) == [], "it is told under its old name"

    def test_list_follows_a_native_migration(self, kit: Kit) -> None:
        if not (kit.claims(Capability.LIST) and kit.claims(Capability.NATIVE_MIGRATION)):
            return
        volume = kit.created()
        driver, host = kit.migration_target()
        assert len(_of(_listed(kit, volume.host), volume)) == 1
        _, update = kit.driver.migrate_volume(kit.ctxt, volume, host)
        arrived = kit.updated(volume, update, driver=driver, host=host["host"])
        assert _of(_listed(kit, volume.host), volume) == []
        if Capability.LIST in driver.capabilities:
            assert len(_of(_listed(kit, arrived.host, driver=driver), arrived)) == 1

    def test_list_tells_foreign_objects_as_foreign(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST) or kit.backend.make_object is None:
            return
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        own = kit.created()
        known = {each.name for each in _listed(kit, kit.host())}
        source = kit.backend.make_object(_pool(kit.host()), pattern.read(0, pattern.size_bytes))
        found = _listed(kit, kit.host())
        assert len(_of(found, own)) == 1
        (foreign,) = [each for each in found if each.name not in known]
        assert (foreign.size_bytes, foreign.backend_id) == (pattern.size_bytes, None)
        if not kit.claims(Capability.MANAGE):
            return
        volume = kit.volume(pattern.size_bytes)
        managed = kit.updated(volume, kit.driver.manage_existing(volume, {"source-name": source}))
        names = [each.name for each in _listed(kit, kit.host())]
        assert names.count(managed.provider_id or managed.backend_name) == 1
        kit.driver.delete_volume(managed)
        assert (managed.provider_id or managed.backend_name) not in {each.name for each in _listed(kit, kit.host())}

    def test_list_is_whole_while_volumes_come_and_go(self, kit: Kit) -> None:
        if not kit.claims(Capability.LIST):
            return
        bystander = kit.created()
        passing = [kit.volume() for _ in range(3)]
        begun, over = threading.Barrier(len(passing) + 1, timeout=_BEGIN_SECONDS), threading.Event()

        def come_and_go(volume: Volume) -> None:
            begun.wait()
            while not over.is_set():
                kit.driver.create_volume(volume)
                # Time to be listed: one that is gone again at once would hardly ever be.
                time.sleep(_STAY_SECONDS)
                kit.driver.delete_volume(volume)

        with ThreadPoolExecutor(max_workers=3) as workers:
            going = [workers.submit(come_and_go, volume) for volume in passing]
            try:
                begun.wait()
                for _ in range(_LOOKS):
                    assert len(_of(_listed(kit, kit.host()), bystander)) == 1
            finally:
                over.set()
            for each in going:
                each.result()
        found = _listed(kit, kit.host())
        assert [volume for volume in passing if _of(found, volume)] == []


def _pool(host: str) -> str:
    return PoolAddress.parse(host).pool


def _of(found: list[StoredObject], volume: Volume) -> list[StoredObject]:
    return [each for each in found if each.backend_id == volume.backend_id]


def _listed(kit: Kit, host: str, *, driver: VolumeDriver | None = None) -> list[StoredObject]:
    """Return what the driver tells of a pool, after a look at its form."""
    found = list((driver or kit.driver).list_objects(_pool(host)))
    for each in found:
        assert isinstance(each, StoredObject)
        assert isinstance(each.name, str)
        assert each.name, "an object has no name"
        assert type(each.size_bytes) is int
        assert each.size_bytes >= 0
        assert each.backend_id is None or (isinstance(each.backend_id, str) and each.backend_id)
    names = [each.name for each in found]
    assert len(set(names)) == len(names), "two objects have one name"
    return found
