"""The conformance suite: every promise of the driver contract, run against a real backend.

In the author's own tests, one import and one fixture::

    from volmig.testing.conformance import Backend, DriverConformance

    class TestMyDriver(DriverConformance):
        @pytest.fixture
        def backend(self, tmp_path):
            def make():
                return MyDriver(host="test", backend="mine", options={...})
            yield Backend(driver=make(), restart=make)

Nothing is ever skipped: what a driver claims must work, and what it does not claim must be refused as the contract
says. The suite needs pytest and volmig only.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite(
    "volmig.testing.kit",
    "volmig.testing.conformance_identity",
    "volmig.testing.conformance_busy",
    "volmig.testing.conformance_lifecycle",
    "volmig.testing.conformance_listing",
    "volmig.testing.conformance_migration",
    "volmig.testing.conformance_safety",
    "volmig.testing.conformance_storage",
)

from volmig.testing.conformance_busy import BusyConformance  # noqa: E402
from volmig.testing.conformance_identity import IdentityConformance  # noqa: E402
from volmig.testing.conformance_lifecycle import LifecycleConformance  # noqa: E402
from volmig.testing.conformance_listing import ListingConformance  # noqa: E402
from volmig.testing.conformance_migration import MigrationConformance  # noqa: E402
from volmig.testing.conformance_safety import SafetyConformance  # noqa: E402
from volmig.testing.conformance_storage import StorageConformance  # noqa: E402
from volmig.testing.kit import Backend, Kit  # noqa: E402

__all__ = ["Backend", "DriverConformance", "Kit"]


class DriverConformance(
    LifecycleConformance,
    MigrationConformance,
    IdentityConformance,
    ListingConformance,
    BusyConformance,
    SafetyConformance,
    StorageConformance,
):
    """All tests of the suite; derive a class from it and give it a fixture ``backend``."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Present the backend to test; every author's class has its own."""
        pytest.fail(f"{type(self).__name__} has no fixture 'backend' that returns a volmig.testing.conformance.Backend")

    @pytest.fixture
    def kit(self, backend: Backend) -> Iterator[Kit]:
        """Set the backend up, and delete in the end what the test has made."""
        kit = Kit(backend)
        yield kit
        kit.clean_up()
