"""The configured backends: finding one, finding a pool, and what stands against putting a volume there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from volmig import conf as configuration
from volmig import errors
from volmig.drivers.base import VolumeDriver
from volmig.manager.backends import Backends

MIB = 1024**2


def _options(own: dict[str, Any]) -> dict[str, Any]:
    return own if ":" in own.get("volume_driver", "") else {"volume_driver": "fake", "fake_pools": ["p", "q"], **own}


def opened(**groups: dict[str, Any]) -> Backends:
    backends = {name: _options(own) for name, own in groups.items()}
    overrides = {"DEFAULT": {"enabled_backends": list(groups), "host": "here"}, **backends}
    return Backends.from_conf(configuration.load([], overrides=overrides))


def test_backends_are_those_that_are_enabled() -> None:
    backends = opened(one={}, two={})
    assert [backend.name for backend in backends] == ["one", "two"]
    assert backends.at("here@two#p").name == "two"
    assert list(opened()) == []


@pytest.mark.parametrize(
    ("address", "cls", "parts"),
    [
        ("here@one", errors.AddressMalformed, ["'#'"]),
        ("there@one#p", errors.HostNotFound, ["'there'", "here"]),
        ("here@three#p", errors.BackendNotFound, ["'three'", "one, two"]),
        ("here@one#r", errors.PoolNotFound, ["'r'", "p, q"]),
        ("here@one#P", errors.PoolNotFound, ["'P'"]),
    ],
)
def test_what_is_not_there_is_told_with_what_is(address: str, cls: type[errors.VolmigError], parts: list[str]) -> None:
    backends = opened(one={}, two={})
    for ask in (backends.pool, lambda text: backends.pool_with_room(text, 1), backends.as_destination):
        with pytest.raises(cls) as caught:
            ask(address)
        for part in parts:
            assert part in caught.value.message


def test_without_any_backend_it_says_none() -> None:
    with pytest.raises(errors.BackendNotFound, match="none"):
        opened().get("one")


@pytest.mark.parametrize(
    ("options", "size_bytes", "cls"),
    [
        ({"fake_capacity_bytes": MIB}, MIB + 1, errors.DestinationTooSmall),
        ({"fake_read_only": True}, 1, errors.DestinationReadOnly),
        ({"fake_down": True}, 1, errors.BackendDown),
        ({"fake_faults": ["get_volume_stats:nonsense"]}, 1, errors.DriverContractBroken),
        ({"fake_faults": ["get_volume_stats:fail"]}, 1, errors.DriverFailed),
        ({"fake_faults": ["do_setup:fail"]}, 1, errors.BackendDown),
        ({"fake_faults": ["check_for_setup_error:fail=backend-setup-failed"]}, 1, errors.BackendDown),
        ({"fake_pools": ["p", "p"]}, 1, errors.BackendDown),
    ],
)
def test_a_pool_that_cannot_take_a_volume(
    options: dict[str, Any], size_bytes: int, cls: type[errors.VolmigError]
) -> None:
    backends = opened(one=options)
    with pytest.raises(cls):
        backends.pool_with_room("here@one#p", size_bytes)


def test_a_pool_with_just_enough_room() -> None:
    pool = opened(one={"fake_capacity_bytes": MIB}).pool_with_room("here@one#p", MIB)
    assert pool.limit_bytes == MIB


class Unmakeable(VolumeDriver):
    """Sound as a class; fails when it is made."""

    def __init__(self, *, host: str, backend: str, options: Any) -> None:
        raise OSError("no licence file")

    def do_setup(self, ctxt: Any) -> None: ...
    def check_for_setup_error(self) -> None: ...
    def get_volume_stats(self, refresh: bool = False) -> Any: ...
    def create_volume(self, volume: Any) -> Any: ...
    def delete_volume(self, volume: Any) -> None: ...
    def extend_volume(self, volume: Any, new_size_bytes: int) -> None: ...
    def volume_exists(self, volume: Any) -> Any: ...
    def initialize_connection(self, volume: Any, connector: Any) -> Any: ...
    def terminate_connection(self, volume: Any, connector: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "cls", "part"),
    [
        ({"volume_driver": "absent"}, errors.PluginNotFound, "'absent'"),
        ({"volume_driver": f"{__name__}:Unmakeable"}, errors.PluginInvalid, "OSError: no licence file"),
        ({"volume_driver": ""}, errors.ConfigOptionInvalid, "volume_driver"),
        ({"fake_capacity_bytes": 0}, errors.ConfigOptionInvalid, "fake_capacity_bytes"),
        ({"fake_capacity": 1}, errors.ConfigOptionUnknown, "fake_capacity"),
        ({"fake_faults": ["create_volume:explode"]}, errors.ConfigOptionInvalid, "fake_faults"),
        ({"driver_timeout_seconds": 0.0}, errors.ConfigOptionInvalid, "driver_timeout_seconds"),
    ],
)
def test_a_mistake_in_the_configuration_is_raised_at_once(
    options: dict[str, Any], cls: type[errors.VolmigError], part: str
) -> None:
    with pytest.raises(cls) as caught:
        opened(good={}, one=options)
    assert part in caught.value.message
    assert isinstance(caught.value, errors.ConfigurationError)


def test_nothing_of_the_storage_is_touched_before_it_is_needed(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    backends = opened(one={"fake_directory": str(directory)})
    assert not directory.exists()
    backends.pool("here@one#p")
    assert directory.is_dir()
