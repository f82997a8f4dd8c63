"""Two backends that would have the same volumes: the one that is enabled later is refused, whoever is set up first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.lvm import support
from tests.unit.drivers.lvm.fake_lvm import FakeLvm, Pv
from tests.unit.manager.drivers import GIB, SmallDriver
from volmig import errors
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.identities import StorageIdentities
from volmig.store import Store
from volmig.testing.memory_store import MemoryStore


class OtherDriver(SmallDriver):
    """Another driver, which cannot know of the first one's storage."""


@pytest.fixture
def store() -> Store:
    return MemoryStore()


def small(
    name: str, *pools: tuple[str, str], identity: str | None = "disk", cls: type[SmallDriver] = SmallDriver
) -> Any:
    driver = cls(backend=name)

    def found() -> None:
        driver.storage_identity = identity

    room = {"total_capacity_bytes": GIB, "free_capacity_bytes": GIB}
    stats = {"volume_backend_name": name, "vendor_name": "t", "driver_version": "1", "storage_protocol": "none"}
    driver.answers = {
        "do_setup": found,
        "get_volume_stats": lambda: (
            stats | {"pools": [{"pool_name": pool, "location_info": place, **room} for pool, place in pools]}
        ),
    }
    return driver


def together(*drivers: Any, store: Store | None = None) -> Backends:
    identities = None if store is None else StorageIdentities(store)
    made = {
        driver.backend: Backend(driver, name=driver.backend, driver_name="d", identities=identities)
        for driver in drivers
    }
    return Backends(made, host="here")


def test_the_later_one_of_two_with_the_same_pool_is_refused() -> None:
    backends = together(small("one", ("p", "at p"), ("q", "at q")), small("two", ("r", "at r"), ("q", "at q")))
    states = [backend.info() for backend in backends]
    assert [state.up for state in states] == [True, False]
    assert "its pool q (at q) has the same volumes as the pool q of backend 'one'" in states[1].down_reason
    with pytest.raises(errors.BackendDown) as caught:
        backends.get("two").pools()
    assert "enabled_backends" in caught.value.hint


@pytest.mark.parametrize(
    "second",
    [
        small("two", ("p", "at q")),
        small("two", ("q", "at p")),
        small("two", ("p", "at p"), identity="another disk"),
        small("two", ("p", "at p"), identity=None),
        small("two", ("p", "at p"), cls=OtherDriver),
    ],
)
def test_those_that_have_pools_of_their_own_are_served(second: SmallDriver) -> None:
    assert all(backend.info().up for backend in together(small("one", ("p", "at p")), second))


def test_pools_that_do_not_say_where_they_are_are_not_compared() -> None:
    assert all(backend.info().up for backend in together(small("one", ("p", "")), small("two", ("p", ""))))


def test_a_process_that_needs_only_the_later_one_knows_of_the_other_from_the_record(store: Store) -> None:
    drivers = [lambda: small("one", ("p", "at p")), lambda: small("two", ("p", "at p"))]
    together(*(make() for make in drivers), store=store).get("one").require_set_up()
    later = together(*(make() for make in drivers), store=store)
    with pytest.raises(errors.BackendDown, match="'one'"):
        later.get("two").require_set_up()


def test_another_host_may_have_the_same(store: Store) -> None:
    for _ in range(2):
        assert together(small("one", ("p", "at p")), store=store).get("one").info().up


def test_one_that_is_out_of_service_is_passed_over(store: Store) -> None:
    first = small("one", ("p", "at p"))
    together(first, store=store).get("one").require_set_up()

    def fail() -> None:
        raise errors.BackendDown(backend="one", reason="it is broken")

    broken = small("one", ("p", "at p"))
    broken.answers["do_setup"] = fail
    backends = together(broken, small("two", ("p", "at p")), store=store)
    assert [backend.info().up for backend in backends] == [False, True]


THIN = {"lvm_type": "thin", "lvm_thin_pools": ["pool"]}


@pytest.mark.parametrize(
    ("one", "two", "is_refused"),
    [
        ({}, {}, True),
        ({}, {"lvm_pv_tags": ["fast"]}, True),
        ({"lvm_pv_tags": ["fast"]}, {}, True),
        ({"lvm_pv_tags": ["fast"]}, {"lvm_pv_tags": ["slow", "fast"]}, True),
        ({"lvm_pv_tags": ["fast"]}, {"lvm_pv_tags": ["slow"]}, False),
        ({}, THIN, False),
        ({"lvm_pv_tags": ["fast"]}, THIN, False),
        (THIN, THIN, True),
        (THIN, {"lvm_type": "thin", "lvm_thin_pools": ["other"]}, False),
    ],
)
def test_backends_on_one_volume_group(
    tmp_path: Path, one: dict[str, Any], two: dict[str, Any], is_refused: bool
) -> None:
    pvs = [Pv(name="/dev/a", extents=64, tags=("fast",)), Pv(name="/dev/b", extents=64, tags=("slow",))]
    lvm = FakeLvm(tmp_path, pvs=pvs)
    for pool in ("pool", "other"):
        lvm.make_pool(pool, 8 * lvm.extent)
    times = {"driver_timeout_seconds": 60.0, "driver_migrate_timeout_seconds": 60.0}
    drivers = [support.driver(lvm, backend=name, **own) for name, own in (("one", one), ("two", two))]
    for driver in drivers:
        driver.options |= times  # type: ignore[operator]
    first, second = [backend.info() for backend in together(*drivers)]
    assert first.up
    assert second.up is not is_refused
    assert not is_refused or ("'one'" in second.down_reason and "vg" in second.down_reason)
