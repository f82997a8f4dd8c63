"""Conformance: present objects, snapshots, hostile records, and many calls at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from volmig import errors
from volmig.drivers import Capability
from volmig.model import PoolAddress, Volume
from volmig.testing import patterns
from volmig.testing.kit import CONNECTOR, ODD_BYTES, SIZE_BYTES, Kit

_HOSTILE_IDS = {
    "parent": "../{victim}",
    "detour": "x/../volume-{victim}",
    "deep": "../../../../../../tmp/{victim}",
    "absolute": "/etc/{victim}",
    "long": "a" * 5000,
    "nul": "{victim}\0",
    "newline": "{victim}\nvolume",
    "option": "{victim} --force",
    "dots": "..",
}


class SafetyConformance:
    """Nothing that stands in a record, and nothing that happens at once, harms another volume."""

    # --- present objects ----------------------------------------------------------------------------------

    def test_managed_object_keeps_its_data_if_claimed(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        if not kit.claims(Capability.MANAGE):
            self._refuses_to_manage(kit)
            return
        reference, pool = self._make_object(kit, pattern)
        volume = kit.volume(pattern.size_bytes, host=kit.driver.address(pool))
        assert kit.driver.manage_existing_get_size(volume, reference) == pattern.size_bytes
        update = kit.driver.manage_existing(volume, reference)
        assert kit.driver.manage_existing(volume, reference) == update, "repeated, it must give the same answer"
        managed = kit.updated(volume, update)
        assert kit.driver.volume_exists(managed) is True
        kit.check(managed, pattern)

    def test_unmanaged_object_stays_if_claimed(self, kit: Kit) -> None:
        if not kit.claims(Capability.MANAGE):
            return
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        reference, pool = self._make_object(kit, pattern)
        volume = kit.volume(pattern.size_bytes, host=kit.driver.address(pool))
        managed = kit.updated(volume, kit.driver.manage_existing(volume, reference))
        kit.driver.unmanage(managed)
        assert kit.driver.manage_existing_get_size(volume, reference) == pattern.size_bytes
        again = kit.updated(volume, kit.driver.manage_existing(volume, reference))
        kit.check(again, pattern)

    def test_managed_object_is_deleted_as_a_volume_if_claimed(self, kit: Kit) -> None:
        if not kit.claims(Capability.MANAGE):
            return
        reference, pool = self._make_object(kit, patterns.dense(kit.backend.size(SIZE_BYTES)))
        volume = kit.volume(SIZE_BYTES, host=kit.driver.address(pool))
        managed = kit.updated(volume, kit.driver.manage_existing(volume, reference))
        kit.driver.delete_volume(managed)
        kit.driver.delete_volume(managed)
        assert kit.driver.volume_exists(managed) is False

    @pytest.mark.parametrize("name", ["", "no-such-object", "../../etc/passwd", "/etc/passwd", "..", ".", "a\0b"])
    def test_unfit_reference_is_refused(self, kit: Kit, name: str) -> None:
        volume = kit.volume()
        expected = errors.NotManageable if kit.claims(Capability.MANAGE) else errors.UnsupportedOperation
        with pytest.raises(expected):
            kit.driver.manage_existing_get_size(volume, {"source-name": name})
        with pytest.raises(expected):
            kit.driver.manage_existing(volume, {"source-name": name})

    @staticmethod
    def _make_object(kit: Kit, pattern: patterns.Pattern) -> tuple[dict[str, str], str]:
        if kit.backend.make_object is None:
            pytest.fail("MANAGE is claimed: give the Backend a make_object function")
        pool = PoolAddress.parse(kit.host()).pool
        return {"source-name": kit.backend.make_object(pool, pattern.read(0, pattern.size_bytes))}, pool

    @staticmethod
    def _refuses_to_manage(kit: Kit) -> None:
        volume = kit.created()
        with pytest.raises(errors.UnsupportedOperation):
            kit.driver.manage_existing_get_size(volume, {"source-name": "x"})
        with pytest.raises(errors.UnsupportedOperation):
            kit.driver.manage_existing(volume, {"source-name": "x"})
        with pytest.raises(errors.UnsupportedOperation):
            kit.driver.unmanage(volume)

    # --- snapshots ------------------------------------------------------------------------------------------

    def test_snapshots_come_and_go_if_claimed(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        snapshot = "0d4f5c1e-0000-4000-8000-00000000beef"
        if not kit.claims(Capability.SNAPSHOTS):
            with pytest.raises(errors.UnsupportedOperation):
                kit.driver.create_snapshot(volume, snapshot)
            with pytest.raises(errors.UnsupportedOperation):
                kit.driver.delete_snapshot(volume, snapshot)
            return
        kit.driver.create_snapshot(volume, snapshot)
        kit.driver.create_snapshot(volume, snapshot)
        kit.check(volume, pattern)
        kit.driver.delete_snapshot(volume, snapshot)
        kit.driver.delete_snapshot(volume, snapshot)
        kit.check(volume, pattern)

    # --- small things that the contract promises for all ------------------------------------------------------

    def test_retype_export_and_their_repetition(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        volume = kit.filled(pattern)
        done, update = kit.driver.retype(kit.ctxt, volume, "another-type")
        assert done is True or (done is False and update is None)
        first = kit.driver.create_export(kit.ctxt, volume)
        assert kit.driver.create_export(kit.ctxt, volume) == first
        exported = kit.updated(volume, first)
        kit.check(exported, pattern)
        kit.driver.remove_export(kit.ctxt, exported)
        assert exported.backend_id not in kit.driver.list_exports(), "it is exported yet"
        kit.driver.remove_export(kit.ctxt, exported)
        kit.driver.delete_volume(exported)
        # What a process that was killed has left is taken back whether there is a volume or not.
        kit.driver.remove_export(kit.ctxt, exported)

    # --- hostile records ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", list(_HOSTILE_IDS))
    @pytest.mark.parametrize("field", ["id", "name_id"])
    def test_hostile_id_is_refused_without_harm(self, kit: Kit, kind: str, field: str) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        victim = kit.filled(pattern)
        changes: dict[str, Any] = {field: _HOSTILE_IDS[kind].format(victim=victim.id)}
        hostile = replace(kit.volume(), **changes)
        with pytest.raises(errors.VolmigError):
            kit.driver.create_volume(hostile)
        self._attack(kit, hostile=hostile)
        kit.check(victim, pattern)

    @pytest.mark.parametrize("kind", list(_HOSTILE_IDS))
    def test_hostile_provider_id_does_no_harm(self, kit: Kit, kind: str) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        victim = kit.filled(pattern)
        self._attack(kit, hostile=kit.volume(provider_id=_HOSTILE_IDS[kind].format(victim=f"volume-{victim.id}")))
        kit.check(victim, pattern)

    @pytest.mark.parametrize("pool", ["..", "../..", "no such pool", "a/../b"])
    def test_unknown_pool_is_refused(self, kit: Kit, pool: str) -> None:
        volume = kit.volume(host=kit.driver.address(pool))
        with pytest.raises(errors.VolmigError):
            kit.driver.create_volume(volume)
        with pytest.raises(errors.VolmigError):
            kit.driver.initialize_connection(volume, CONNECTOR)

    @staticmethod
    def _attack(kit: Kit, *, hostile: Volume) -> None:
        """Make every destructive call with a hostile record: each refuses, or finds nothing."""
        driver = kit.driver

        refused: tuple[Callable[[], object], ...] = (
            lambda: driver.extend_volume(hostile, 2 * hostile.size_bytes),
            lambda: driver.initialize_connection(hostile, CONNECTOR),
            lambda: driver.update_migrated_volume(kit.ctxt, kit.volume(), hostile, "available"),
        )
        for call in refused:
            with pytest.raises((errors.VolmigError, NotImplementedError)):
                call()
        with contextlib.suppress(errors.VolmigError):
            driver.delete_volume(hostile)
        with contextlib.suppress(errors.VolmigError):
            assert driver.volume_exists(hostile) is False, "an object was found under a hostile name"

    # --- room and rush --------------------------------------------------------------------------------------------

    def test_too_large_a_volume_leaves_nothing_behind(self, kit: Kit) -> None:
        volume = kit.volume()
        huge = replace(volume, size_bytes=kit.backend.size(2 * kit.pool(volume)["total_capacity_bytes"]))
        try:
            kit.driver.create_volume(huge)
        except errors.VolmigError:
            assert kit.driver.volume_exists(huge) is False
        else:  # a thin pool may promise it, but then the whole of it
            kit.driver.initialize_connection(huge, CONNECTOR)
            kit.driver.delete_volume(huge)

    def test_volumes_are_made_at_once(self, kit: Kit) -> None:
        wanted = [(kit.volume(ODD_BYTES), patterns.dense(kit.backend.size(ODD_BYTES), seed=n)) for n in range(6)]

        def make(item: tuple[Volume, patterns.Pattern]) -> None:
            kit.driver.create_volume(item[0])
            kit.fill(*item)

        with ThreadPoolExecutor(max_workers=6) as workers:
            list(workers.map(make, wanted))
        for volume, pattern in wanted:
            kit.check(volume, pattern)

    def test_one_volume_is_made_once_by_many(self, kit: Kit) -> None:
        volume = kit.volume()
        before = kit.pool(volume).get("provisioned_capacity_bytes")
        with ThreadPoolExecutor(max_workers=6) as workers:
            answers = list(workers.map(kit.driver.create_volume, [volume] * 6))
        assert answers == [answers[0]] * 6
        if before is not None:
            assert kit.pool(volume)["provisioned_capacity_bytes"] == before + volume.size_bytes

    def test_one_volume_is_deleted_by_many(self, kit: Kit) -> None:
        volume = kit.created()
        with ThreadPoolExecutor(max_workers=6) as workers:
            list(workers.map(kit.driver.delete_volume, [volume] * 6))
        assert kit.driver.volume_exists(volume) is False
