"""Fixtures that these tests share with the unit tests of the same parts."""

from __future__ import annotations

from tests.unit.transfer.conftest import _leaves_nothing, means

__all__ = ["_leaves_nothing", "means"]
