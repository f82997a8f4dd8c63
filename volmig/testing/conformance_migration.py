"""Conformance: moving a volume, and finishing a copy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from volmig import errors
from volmig.drivers import Capability, MigrationHost
from volmig.model import Attachment, Volume, VolumeStatus
from volmig.testing import patterns
from volmig.testing.kit import ODD_BYTES, Kit


class MigrationConformance:
    """``migrate_volume``, ``recover_migration`` and ``update_migrated_volume``."""

    # --- the driver's own migration -------------------------------------------------------------------

    def test_native_migration_keeps_the_data_if_claimed(self, kit: Kit) -> None:
        pattern = patterns.holed(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        if not kit.claims(Capability.NATIVE_MIGRATION):
            for number in range(1, len(kit.pools())):
                answer = kit.driver.migrate_volume(kit.ctxt, volume, kit.migration_host(kit.driver, number))
                assert answer == (False, None), "NATIVE_MIGRATION is not claimed"
            kit.check(volume, pattern)
            return
        driver, host = kit.migration_target()
        moved, update = kit.driver.migrate_volume(kit.ctxt, volume, host)
        assert moved is True
        arrived = kit.updated(volume, update, driver=driver, host=host["host"])
        kit.check(arrived, pattern, driver=driver)
        assert driver.volume_exists(arrived) is True
        assert kit.driver.volume_exists(volume) is False, "the volume is in two places"

    def test_native_migration_repeated_succeeds(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        driver, host = kit.migration_target()
        first = kit.driver.migrate_volume(kit.ctxt, volume, host)
        assert kit.driver.migrate_volume(kit.ctxt, volume, host) == first
        kit.check(kit.updated(volume, first[1], driver=driver, host=host["host"]), pattern, driver=driver)

    def test_native_migration_by_a_restarted_driver_repeats_too(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        volume = kit.created()
        driver, host = kit.migration_target()
        first = kit.driver.migrate_volume(kit.ctxt, volume, host)
        kit.updated(volume, first[1], driver=driver, host=host["host"])
        assert kit.ready(kit.backend.restart()).migrate_volume(kit.ctxt, volume, host) == first

    def test_native_migration_of_a_volume_with_another_name_id(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        pattern = patterns.edges(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern, name_id="0d4f5c1e-0000-4000-8000-0000000000aa")
        driver, host = kit.migration_target()
        moved, update = kit.driver.migrate_volume(kit.ctxt, volume, host)
        assert moved is True
        kit.check(kit.updated(volume, update, driver=driver, host=host["host"]), pattern, driver=driver)

    def test_native_migration_of_a_missing_volume_is_no_success(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        driver, host = kit.migration_target()
        volume = kit.volume()
        with pytest.raises(errors.VolmigError):
            kit.driver.migrate_volume(kit.ctxt, volume, host)
        assert driver.volume_exists(replace(volume, host=host["host"])) is False

    def test_native_migration_never_replaces_another_object(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        driver, host = kit.migration_target()
        here = patterns.dense(kit.backend.size(ODD_BYTES), seed=1)
        there = patterns.dense(kit.backend.size(ODD_BYTES), seed=2)
        volume = kit.filled(here)
        other = kit.updated(replace(volume, host=host["host"]), None, driver=driver)
        try:
            driver.create_volume(other)
        except errors.VolmigError:  # a name is one in all pools of this storage, so that nothing can be replaced
            kit.check(volume, here)
            return
        with kit.opened(other, "r+b", driver=driver) as end:
            patterns.fill(end, there)
        with pytest.raises(errors.VolmigError):
            kit.driver.migrate_volume(kit.ctxt, volume, host)
        kit.check(volume, here)
        kit.check(other, there, driver=driver)

    def test_foreign_destination_is_declined_and_the_source_is_whole(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        assert kit.driver.migrate_volume(kit.ctxt, volume, kit.foreign_host()) == (False, None)
        kit.check(volume, pattern)

    def test_volume_in_use_moves_if_claimed(self, kit: Kit) -> None:
        if not kit.claims(Capability.ONLINE_MIGRATION):
            return
        assert kit.claims(Capability.NATIVE_MIGRATION), "ONLINE_MIGRATION is nothing without NATIVE_MIGRATION"
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = replace(
            kit.filled(pattern), status=VolumeStatus.IN_USE, attachments=(Attachment(id="a", instance="vm"),)
        )
        driver, host = kit.migration_target()
        moved, update = kit.driver.migrate_volume(kit.ctxt, volume, host)
        assert moved is True
        kit.check(kit.updated(volume, update, driver=driver, host=host["host"]), pattern, driver=driver)

    # --- recovery -----------------------------------------------------------------------------------------

    def test_recovery_finds_a_volume_that_did_not_move(self, kit: Kit) -> None:
        volume = kit.created()
        host = self._recovery_host(kit)
        try:
            answer = kit.driver.recover_migration(kit.ctxt, volume, host)
        except NotImplementedError:
            return  # the core asks volume_exists instead, which has tests of its own
        assert answer == (False, None)
        assert kit.driver.volume_exists(volume) is True

    def test_recovery_finds_a_volume_that_moved(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        driver, host = kit.migration_target()
        done = kit.driver.migrate_volume(kit.ctxt, volume, host)
        arrived = kit.updated(volume, done[1], driver=driver, host=host["host"])
        try:
            assert kit.driver.recover_migration(kit.ctxt, volume, host) == done
        except NotImplementedError:
            assert driver.volume_exists(arrived) is True
        kit.check(arrived, pattern, driver=driver)

    def test_recovery_of_a_lost_volume_does_not_guess(self, kit: Kit) -> None:
        volume = kit.volume()
        with pytest.raises((errors.VolmigError, NotImplementedError)):
            kit.driver.recover_migration(kit.ctxt, volume, self._recovery_host(kit))

    @staticmethod
    def _recovery_host(kit: Kit) -> MigrationHost:
        return kit.migration_target()[1] if kit.claims(Capability.NATIVE_MIGRATION) else kit.foreign_host()

    # --- finishing a copy -----------------------------------------------------------------------------------

    def test_rename_gives_the_original_id_if_claimed(self, kit: Kit) -> None:
        original, copy, pattern = self._copy(kit)
        if not kit.claims(Capability.RENAME):
            self._keeps_own_id(kit, original, copy)
            kit.check(copy, pattern)
            return
        update = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
        assert "_name_id" in update
        assert update["_name_id"] is None
        kit.check(kit.updated(original, update, host=copy.host), pattern)
        assert kit.driver.volume_exists(copy) is False

    def test_rename_repeated_gives_the_same_answer(self, kit: Kit) -> None:
        if not kit.claims(Capability.RENAME):
            return
        original, copy, pattern = self._copy(kit)
        first = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
        assert kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available") == first
        restarted = kit.ready(kit.backend.restart())
        assert restarted.update_migrated_volume(kit.ctxt, original, copy, "available") == first
        kit.check(kit.updated(original, first, host=copy.host), pattern)

    def test_rename_leaves_a_taken_name_alone(self, kit: Kit) -> None:
        if not kit.claims(Capability.RENAME):
            return
        original, copy, pattern = self._copy(kit)
        taken = patterns.dense(copy.size_bytes, seed=99)
        other = kit.filled(taken, id=original.id, host=copy.host)
        for _ in range(2):
            update = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
            assert update.get("_name_id") == copy.backend_id
        kit.check(kit.updated(original, update, host=copy.host), pattern)
        kit.check(other, taken)

    def test_rename_of_a_missing_copy_is_an_error(self, kit: Kit) -> None:
        if not kit.claims(Capability.RENAME):
            return
        original, copy, _ = self._copy(kit)
        kit.driver.delete_volume(copy)
        with pytest.raises(errors.VolmigError):
            kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")

    @staticmethod
    def _copy(kit: Kit) -> tuple[Volume, Volume, patterns.Pattern]:
        """Return an original elsewhere, and its finished copy in this backend."""
        pattern = patterns.dense(kit.backend.size(ODD_BYTES), seed=5)
        copy = kit.filled(pattern)
        original = replace(kit.volume(), size_bytes=copy.size_bytes, host="elsewhere@stranger#pool")
        return original, copy, pattern

    @staticmethod
    def _keeps_own_id(kit: Kit, original: Volume, copy: Volume) -> None:
        try:
            update = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
        except NotImplementedError:
            return
        assert update.get("_name_id") == copy.backend_id, "RENAME is not claimed, and the copy keeps its own id"
