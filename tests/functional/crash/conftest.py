"""What the crash tests share; see tests/sweeping.py."""

from __future__ import annotations

from tests.sweeping import is_long, pytest_terminal_summary, seed, sweep, zygotes

__all__ = ["is_long", "pytest_terminal_summary", "seed", "sweep", "zygotes"]
