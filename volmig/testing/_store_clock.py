"""Time in the suite for stores."""

from __future__ import annotations

import pytest

from volmig.testing._store_values import ManualClock


class StoreClock:
    """The clock of the store under test."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock that the store under test is given."""
        return ManualClock()

    def pass_time(self, clock: ManualClock, seconds: float) -> None:
        """Let *seconds* pass on the store's clock."""
        clock.advance(seconds)
