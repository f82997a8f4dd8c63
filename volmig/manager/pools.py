"""What the core knows of backends and pools: a driver's statistics, checked, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from volmig import errors
from volmig.model import PoolAddress


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolInfo:
    """One pool and the room in it."""

    address: str
    """``host@backend#pool``."""
    total_capacity_bytes: int
    free_capacity_bytes: int
    provisioned_capacity_bytes: int
    """Sum of the sizes of the volumes in it, as far as the driver tells."""
    reserved_percentage: int
    max_over_subscription_ratio: float
    thin_provisioning: bool
    read_only: bool
    location_info: str
    up: bool = True
    reserved_bytes: int = 0
    """Room that running migrations and creations have claimed."""

    @property
    def limit_bytes(self) -> int:
        """Bytes that new volumes may take in all, those with a reservation included.

        A thick pool can give its free capacity less the part that is kept free. A thin one can promise that times
        its over-subscription ratio, as long as all volumes together stay within its capacity times the ratio; both
        as Cinder's CapacityFilter has it.
        """
        kept = self.total_capacity_bytes * self.reserved_percentage // 100
        free = max(self.free_capacity_bytes - kept, 0)
        if not self.thin_provisioning:
            return free
        ratio = self.max_over_subscription_ratio
        promised = int(self.total_capacity_bytes * ratio) - self.provisioned_capacity_bytes
        return max(min(int(free * ratio), promised), 0)

    @property
    def available_bytes(self) -> int:
        """Largest size of a volume that could be made now."""
        if self.read_only or not self.up:
            return 0
        return max(self.limit_bytes - self.reserved_bytes, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendInfo:
    """One backend: its driver, its state, its pools."""

    name: str
    address: str
    """``host@backend``."""
    driver: str
    driver_version: str
    vendor_name: str
    storage_protocol: str
    volume_backend_name: str
    up: bool
    down_reason: str
    capabilities: tuple[str, ...]
    """Names of the driver's capabilities, sorted."""
    pools: tuple[PoolInfo, ...]
    calls_hanging: int = 0
    """How many calls of the driver were given up by this process and still run."""


class StatsMalformed(ValueError):
    """A driver's statistics break the contract; the text says how."""


def parse_pools(stats: Any, address: Callable[[str], str]) -> dict[str, PoolInfo]:
    """Return the pools that a driver's ``get_volume_stats`` tells of, by name.

    :param address: gives a pool's address by its name.
    :raises StatsMalformed: naming the key that is missing or not sound.
    """
    if not isinstance(stats, Mapping):
        raise StatsMalformed(f"the statistics are {type(stats).__name__}, not a mapping")
    pools = stats.get("pools")
    if not isinstance(pools, list) or not pools:
        raise StatsMalformed("'pools' is not a list of at least one pool")
    parsed: dict[str, PoolInfo] = {}
    for pool in pools:
        if not isinstance(pool, Mapping):
            raise StatsMalformed("a pool is not a mapping")
        name = pool.get("pool_name")
        if not isinstance(name, str) or not name:
            raise StatsMalformed(f"'pool_name' is {name!r}")
        if name in parsed:
            raise StatsMalformed(f"two pools are named {name!r}")
        try:
            PoolAddress.parse(address(name))
        except errors.AddressMalformed as error:
            raise StatsMalformed(f"'pool_name' {name!r} cannot be used: {error.message}") from error
        parsed[name] = _parse_pool(name, pool, address(name))
    return parsed


def _parse_pool(name: str, pool: Mapping[str, Any], address: str) -> PoolInfo:
    def number(key: str, default: int | None = None, most: int | None = None) -> int:
        value = pool.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most is not None and value > most):
            raise StatsMalformed(f"{key!r} of pool {name!r} is {value!r}")
        return value

    def flag(key: str) -> bool:
        value = pool.get(key, False)
        if not isinstance(value, bool):
            raise StatsMalformed(f"{key!r} of pool {name!r} is {value!r}")
        return value

    ratio = pool.get("max_over_subscription_ratio", 1.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio < math.inf:
        raise StatsMalformed(f"'max_over_subscription_ratio' of pool {name!r} is {ratio!r}")
    total = number("total_capacity_bytes")
    return PoolInfo(
        address=address,
        total_capacity_bytes=total,
        free_capacity_bytes=number("free_capacity_bytes", most=total),
        provisioned_capacity_bytes=number("provisioned_capacity_bytes", 0),
        reserved_percentage=number("reserved_percentage", 0, most=100),
        max_over_subscription_ratio=float(ratio),
        thin_provisioning=flag("thin_provisioning"),
        read_only=flag("read_only"),
        location_info=str(pool.get("location_info", "")),
    )
