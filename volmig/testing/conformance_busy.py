"""Conformance: what StorageBusy promises, namely that nothing was changed and that the call may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from volmig import errors
from volmig.drivers import Capability
from volmig.testing import patterns
from volmig.testing.kit import CONNECTOR, ODD_BYTES, Kit


class BusyConformance:
    """A driver whose author can make its storage busy raises StorageBusy before it changes anything.

    A call that the busy storage serves all the same is as good; without ``make_busy`` there is nothing to see.
    """

    def test_busy_creation_leaves_nothing_and_can_be_repeated(self, kit: Kit) -> None:
        volume = kit.volume()
        if _was_refused(kit, lambda: kit.driver.create_volume(volume)):
            assert kit.driver.volume_exists(volume) is False, "StorageBusy came after the object was made"
            kit.driver.create_volume(volume)
        kit.driver.create_volume(volume)
        assert kit.driver.volume_exists(volume) is True

    def test_busy_deletion_leaves_the_volume_whole(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        identity = kit.driver.identify_object(volume)
        if _was_refused(kit, lambda: kit.driver.delete_volume(volume)):
            kit.check(volume, pattern)
            if _was_refused(kit, lambda: kit.driver.delete_object(volume, identity)):
                kit.check(volume, pattern)
        kit.driver.delete_volume(volume)
        assert kit.driver.volume_exists(volume) is False

    def test_busy_extension_leaves_the_size(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        new_size = kit.backend.size(2 * ODD_BYTES)
        if _was_refused(kit, lambda: kit.driver.extend_volume(volume, new_size)):
            kit.check(volume, pattern)
        kit.driver.extend_volume(volume, new_size)
        extended = replace(volume, size_bytes=new_size)
        kit.driver.initialize_connection(extended, CONNECTOR)
        kit.driver.terminate_connection(extended, CONNECTOR)

    def test_busy_migration_leaves_the_volume_at_its_source(self, kit: Kit) -> None:
        if not kit.claims(Capability.NATIVE_MIGRATION):
            return
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        driver, host = kit.migration_target()
        if _was_refused(kit, lambda: kit.driver.migrate_volume(kit.ctxt, volume, host)):
            kit.check(volume, pattern)
            assert driver.volume_exists(replace(volume, host=host["host"])) is False
        moved, update = kit.driver.migrate_volume(kit.ctxt, volume, host)
        assert moved is True
        kit.check(kit.updated(volume, update, driver=driver, host=host["host"]), pattern, driver=driver)

    def test_busy_rename_leaves_the_copy_under_its_id(self, kit: Kit) -> None:
        if not kit.claims(Capability.RENAME):
            return
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        copy = kit.filled(pattern)
        original = replace(kit.volume(), size_bytes=copy.size_bytes, host="elsewhere@stranger#pool")
        if _was_refused(kit, lambda: kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")):
            kit.check(copy, pattern)
        update = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
        kit.check(kit.updated(original, update, host=copy.host), pattern)


def _was_refused(kit: Kit, call: Callable[[], object]) -> bool:
    """Make a call while the storage is busy, and say whether it raised StorageBusy; make none if it cannot be busy."""
    busy = kit.busy()
    if busy is None:
        return False
    with busy:
        try:
            call()
        except errors.StorageBusy:
            return True
    return False
