"""A driver's statistics: what is refused, and what room follows from them."""

from __future__ import annotations

import math
import unittest
from typing import Any

import ddt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volmig.manager.pools import PoolInfo, StatsMalformed, parse_pools

GIB = 1024**3


def parse(**changes: Any) -> PoolInfo:
    pool = {"pool_name": "p", "total_capacity_bytes": 100, "free_capacity_bytes": 50, **changes}
    present = {key: value for key, value in pool.items() if value is not Ellipsis}
    return parse_pools({"pools": [present]}, lambda name: f"h@b#{name}")["p"]


@ddt.ddt
class Malformed(unittest.TestCase):
    @ddt.data(
        None,
        "pools",
        [],
        {},
        {"pools": None},
        {"pools": []},
        {"pools": {}},
        {"pools": "p"},
        {"pools": ["p"]},
        {"pools": [None]},
        {"pools": [{}]},
        {"pools": [{"pool_name": ""}]},
        {"pools": [{"pool_name": 7}]},
        {"pools": [{"pool_name": b"p"}]},
    )
    def test_statistics(self, stats: object) -> None:
        with pytest.raises(StatsMalformed):
            parse_pools(stats, str)

    @ddt.data(
        {"total_capacity_bytes": ...},
        {"free_capacity_bytes": ...},
        {"total_capacity_bytes": None},
        {"total_capacity_bytes": "100"},
        {"total_capacity_bytes": "infinite"},
        {"total_capacity_bytes": -1},
        {"total_capacity_bytes": 100.0},
        {"total_capacity_bytes": True},
        {"free_capacity_bytes": "unknown"},
        {"free_capacity_bytes": -1},
        {"free_capacity_bytes": math.inf},
        {"free_capacity_bytes": math.nan},
        {"free_capacity_bytes": 101},
        {"provisioned_capacity_bytes": -1},
        {"provisioned_capacity_bytes": 1.5},
        {"provisioned_capacity_bytes": None},
        {"reserved_percentage": -1},
        {"reserved_percentage": 101},
        {"reserved_percentage": 1.5},
        {"reserved_percentage": "10"},
        {"max_over_subscription_ratio": 0.99},
        {"max_over_subscription_ratio": 0},
        {"max_over_subscription_ratio": -2},
        {"max_over_subscription_ratio": "auto"},
        {"max_over_subscription_ratio": None},
        {"max_over_subscription_ratio": True},
        {"max_over_subscription_ratio": math.nan},
        {"max_over_subscription_ratio": math.inf},
        {"thin_provisioning": "False"},
        {"thin_provisioning": 1},
        {"thin_provisioning": None},
        {"read_only": "no"},
        {"read_only": 0},
    )
    def test_pool(self, changes: dict[str, Any]) -> None:
        with pytest.raises(StatsMalformed) as caught:
            parse(**changes)
        (key,) = changes
        assert repr(key) in str(caught.value)
        assert "'p'" in str(caught.value)

    @ddt.data(" p", "p ", "p\n", "p" * 300, "\0")
    def test_a_name_that_cannot_be_part_of_an_address(self, name: str) -> None:
        stats = {"pools": [{"pool_name": name, "total_capacity_bytes": 1, "free_capacity_bytes": 1}]}
        with pytest.raises(StatsMalformed) as caught:
            parse_pools(stats, lambda pool: f"h@b#{pool}")
        assert repr(name) in str(caught.value)


def test_two_pools_of_one_name() -> None:
    pool = {"pool_name": "p", "total_capacity_bytes": 1, "free_capacity_bytes": 1}
    with pytest.raises(StatsMalformed, match="two pools"):
        parse_pools({"pools": [pool, pool]}, lambda name: f"h@b#{name}")


def test_what_is_left_out_has_the_careful_meaning() -> None:
    pool = parse()
    assert pool.address == "h@b#p"
    assert (pool.thin_provisioning, pool.read_only, pool.max_over_subscription_ratio) == (False, False, 1.0)
    assert (pool.provisioned_capacity_bytes, pool.reserved_percentage, pool.location_info) == (0, 0, "")
    assert pool.limit_bytes == pool.available_bytes == 50


@ddt.ddt
class Room(unittest.TestCase):
    @ddt.data(
        # thick: what is free, less what is kept
        ({}, 50),
        ({"reserved_percentage": 10}, 40),
        ({"reserved_percentage": 50}, 0),
        ({"reserved_percentage": 60}, 0),
        ({"reserved_percentage": 100}, 0),
        ({"free_capacity_bytes": 0}, 0),
        ({"free_capacity_bytes": 100}, 100),
        # the ratio and what is promised do not count for a thick pool
        ({"max_over_subscription_ratio": 20.0, "provisioned_capacity_bytes": 1000}, 50),
        # thin: free room times the ratio, within the whole times the ratio less what is promised
        ({"thin_provisioning": True}, 50),
        ({"thin_provisioning": True, "max_over_subscription_ratio": 2.0}, 100),
        ({"thin_provisioning": True, "max_over_subscription_ratio": 2.0, "provisioned_capacity_bytes": 150}, 50),
        ({"thin_provisioning": True, "max_over_subscription_ratio": 2.0, "provisioned_capacity_bytes": 200}, 0),
        ({"thin_provisioning": True, "max_over_subscription_ratio": 2.0, "provisioned_capacity_bytes": 999}, 0),
        ({"thin_provisioning": True, "max_over_subscription_ratio": 2.0, "reserved_percentage": 10}, 80),
        ({"thin_provisioning": True, "max_over_subscription_ratio": 1.5, "free_capacity_bytes": 0}, 0),
        ({"thin_provisioning": True, "provisioned_capacity_bytes": 90}, 10),
    )
    @ddt.unpack
    def test_limit(self, changes: dict[str, Any], limit_bytes: int) -> None:
        assert parse(**changes).limit_bytes == limit_bytes

    @ddt.data(({"read_only": True}, 0, 0), ({}, 20, 30), ({}, 50, 0), ({}, 70, 0))
    @ddt.unpack
    def test_available(self, changes: dict[str, Any], reserved_bytes: int, available_bytes: int) -> None:
        pool = parse(**changes)
        values = {name: getattr(pool, name) for name in PoolInfo.__dataclass_fields__}
        assert PoolInfo(**{**values, "reserved_bytes": reserved_bytes}).available_bytes == available_bytes

    def test_a_pool_that_is_down_has_none(self) -> None:
        pool = parse()
        values = {name: getattr(pool, name) for name in PoolInfo.__dataclass_fields__}
        assert PoolInfo(**{**values, "up": False}).available_bytes == 0


@given(
    total=st.integers(0, 2**62),
    free_share=st.floats(0, 1),
    provisioned=st.integers(0, 2**63),
    reserved=st.integers(0, 100),
    ratio=st.floats(1, 1000) | st.integers(1, 20),
    is_thin=st.booleans(),
    is_read_only=st.booleans(),
)
def test_room_is_never_negative_and_never_more_than_there_can_be(
    total: int,
    free_share: float,
    provisioned: int,
    reserved: int,
    ratio: float,
    is_thin: bool,
    is_read_only: bool,
) -> None:
    pool = parse(
        total_capacity_bytes=total,
        free_capacity_bytes=min(int(total * free_share), total),
        provisioned_capacity_bytes=provisioned,
        reserved_percentage=reserved,
        max_over_subscription_ratio=ratio,
        thin_provisioning=is_thin,
        read_only=is_read_only,
    )
    assert 0 <= pool.available_bytes <= pool.limit_bytes
    assert pool.limit_bytes <= total * (ratio if is_thin else 1)
    if not is_thin:
        assert pool.limit_bytes <= pool.free_capacity_bytes
    if is_read_only:
        assert pool.available_bytes == 0
