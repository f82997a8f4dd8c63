"""Fixtures that these tests share with the unit tests of the engine."""

from __future__ import annotations

from tests.unit.engine.conftest import make_world

__all__ = ["make_world"]
