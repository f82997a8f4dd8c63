"""Worlds that are closed in the end, and leave no thread and no process."""

from __future__ import annotations

from tests.unit.engine.conftest import make_world

__all__ = ["make_world"]
