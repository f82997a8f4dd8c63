"""Conformance: storage that a driver makes itself is made once, and taken down without loss."""

from __future__ import annotations

from collections.abc import Callable

from volmig import errors
from volmig.testing import patterns
from volmig.testing.kit import ODD_BYTES, Kit


class StorageConformance:
    """A driver refuses to set its storage up, or to take it down, by UnsupportedOperation, or does it repeatably."""

    def test_storage_that_is_there_is_set_up_without_change(self, kit: Kit) -> None:
        volume = kit.filled(pattern := patterns.dense(kit.backend.size(ODD_BYTES)))
        if _is_offered(lambda: kit.driver.setup_storage(kit.ctxt)):
            kit.driver.setup_storage(kit.ctxt)
        kit.check(volume, pattern)

    def test_storage_that_was_taken_down_is_found_again_with_its_data(self, kit: Kit) -> None:
        volume = kit.filled(pattern := patterns.dense(kit.backend.size(ODD_BYTES)))
        if _is_offered(lambda: kit.driver.teardown_storage(kit.ctxt)):
            kit.driver.teardown_storage(kit.ctxt)
            identity = kit.driver.storage_identity
            kit.driver = kit.backend.restart()
            kit.driver.storage_identity = identity
            kit.driver.setup_storage(kit.ctxt)
            kit.ready(kit.driver)
        kit.check(volume, pattern)


def _is_offered(call: Callable[[], None]) -> bool:
    try:
        call()
    except errors.UnsupportedOperation:
        return False
    return True
