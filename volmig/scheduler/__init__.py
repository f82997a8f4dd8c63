"""Checking, and later choosing, the pool that a volume goes to."""

from volmig.scheduler.placement import check_destination, check_movable

__all__ = ["check_destination", "check_movable"]
