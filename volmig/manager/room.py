"""Claiming room in a pool by figures that are fresh enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from volmig import errors
from volmig.manager.backends import Backends
from volmig.model import Reservation
from volmig.store import Store
from volmig.store.base import WriteTransaction

T = TypeVar("T")

_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """A pool's room as its driver told it, and the state of the store just before."""

    limit_bytes: int
    releases: int

    def reserve(self, transaction: WriteTransaction, reservation: Reservation) -> None:
        """Reserve a part of it. :raises volmig.errors.StoreConflict: when the figures are out of date."""
        transaction.reserve(reservation, limit_bytes=self.limit_bytes, releases=self.releases)


def with_room(store: Store, backends: Backends, address: str, size_bytes: int, claim: Callable[[Room], T]) -> T:
    """Return what *claim* returns, which reserves room in the pool *address* for *size_bytes* bytes more.

    The driver's figures are taken before the transaction that reserves. Should room in the pool be given back in
    between, then the object that took it may be missing from the figures, and all is done once more.

    :raises volmig.errors.DestinationReadOnly: when the pool takes no new volumes.
    :raises volmig.errors.DestinationTooSmall: when it has no room.
    """
    for _ in range(_ATTEMPTS):
        with store.reading() as view:
            releases = view.count_releases(address)
        pool = backends.pool_with_room(address, size_bytes)
        try:
            return claim(Room(limit_bytes=pool.limit_bytes, releases=releases))
        except errors.StoreConflict as error:
            if error.fields["kind"] != "pool":
                raise
    raise errors.StoreConflict(kind="pool", id=address)
