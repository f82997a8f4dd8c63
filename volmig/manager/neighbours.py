"""Backends that would have the same volumes: the one that is enabled later is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from volmig import errors
from volmig.drivers.base import PoolStats

if TYPE_CHECKING:
    from volmig.manager.backend import Backend


def require_own_pools(backend: Backend, earlier: Sequence[Backend], pools: Callable[[], Sequence[PoolStats]]) -> None:
    """Refuse a backend when a pool of its is that of another backend as well.

    Each of the two would take the other's volumes for strangers', offer them for adoption, and delete what the other
    has on record. Only backends of one driver whose storage has the same identity can share a pool. An earlier one that
    is out of service, or whose storage nobody has seen yet, is passed over: then both are served until the next start.

    :param earlier: the backends of this host that are enabled before this one.
    :param pools: asks the backend's driver for its pools.
    :raises volmig.errors.BackendDown: naming both, and the pools.
    """
    identity, kind = backend.identity, type(backend.driver)
    same = [each for each in earlier if type(each.driver) is kind and identity is not None]
    same = [each for each in same if each.identity == identity]
    own = pools() if same else ()
    for other in same:
        try:
            others = other.pool_stats()
        except errors.VolmigError:
            continue
        for pool, place in ((pool, place) for pool in own for place in others):
            if backend.driver.is_same_pool(pool, place):
                raise _same(backend, pool, other, place)


def _same(backend: Backend, pool: PoolStats, other: Backend, place: PoolStats) -> errors.BackendDown:
    return errors.BackendDown(
        backend=backend.name,
        reason=(
            f"its pool {pool['pool_name']} ({pool.get('location_info')}) has the same volumes as the pool "
            f"{place['pool_name']} of backend {other.name!r} ({place.get('location_info')}), which is enabled before it"
        ),
        hint=f"Take {backend.name} or {other.name} out of enabled_backends, or give each pools of its own.",
    )
