"""The table says how every call is treated, and the options can change its times."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from volmig import conf as configuration
from volmig import errors
from volmig.drivers.base import VolumeDriver
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.manager.policies import POLICIES, CallTimes, Repetition
from volmig.manager.retries import Retries

OPTIONS: dict[str, Any] = {"driver_timeout_seconds": 7.0, "driver_migrate_timeout_seconds": 900.0}


def test_the_table_has_every_method_of_the_contract() -> None:
    methods = {
        name
        for name, value in inspect.getmembers(VolumeDriver, inspect.isfunction)
        if not name.startswith("_") and name not in {"address", "get_driver_options", "is_same_pool", "stored_size"}
    }
    assert set(POLICIES) == methods
    assert all(method == policy.method and policy.reason for method, policy in POLICIES.items())


def test_what_the_contract_does_not_promise_is_not_repeated() -> None:
    once = {method for method, policy in POLICIES.items() if policy.repetition is not Repetition.RETRY}
    assert once == {"migrate_volume", "open_volume", "manage_existing", "unmanage", "retype"}
    assert POLICIES["migrate_volume"].repetition is Repetition.ASK


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        POLICIES["create_volume"] = POLICIES["open_volume"]  # type: ignore[index]


def test_times_are_those_of_the_options() -> None:
    times = CallTimes.from_options(
        OPTIONS | {"driver_call_timeouts": {"create_volume": "900", "identify_object": 0.5}}, group="b"
    )
    assert times.seconds["create_volume"] == 900.0
    assert times.seconds["identify_object"] == 0.5
    assert times.seconds["delete_volume"] == 7.0
    assert times.seconds["migrate_volume"] == 900.0
    assert set(times.seconds) == set(POLICIES)


def test_the_longest_time_is_without_that_of_migrations() -> None:
    assert CallTimes.from_options(OPTIONS, group="b").longest_seconds == 7.0
    given = OPTIONS | {"driver_call_timeouts": {"create_volume": "30", "migrate_volume": "100"}}
    assert CallTimes.from_options(given, group="b").longest_seconds == 30.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"create_volumes": "7"}, "there is no method 'create_volumes'; the methods are check_for_setup_error, "),
        ({"__init__": "7"}, "'__init__'"),
        ({"": "7"}, "''"),
        ({"create_volume": ""}, "'', not a number"),
        ({"create_volume": "soon"}, "'soon', not a number"),
        ({"create_volume": "5 s"}, "not a number"),
        ({"create_volume": None}, "None, not a number"),
        ({"create_volume": [1]}, "not a number"),
        ({"create_volume": True}, "seconds"),
        ({"create_volume": "0"}, "from 0.1 to 2592000 seconds"),
        ({"create_volume": "-3"}, "from 0.1"),
        ({"create_volume": "1e9"}, "from 0.1"),
        ({"create_volume": "nan"}, "from 0.1"),
        ({"create_volume": math.inf}, "from 0.1"),
    ],
)
def test_a_bad_time_is_refused_with_its_place(given: dict[str, Any], told: str) -> None:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        CallTimes.from_options(OPTIONS | {"driver_call_timeouts": given}, group="san")
    assert caught.value.fields["option"] == "driver_call_timeouts"
    assert caught.value.fields["group"] == "san"
    assert told in caught.value.message


def loaded(**options: Any) -> Backend:
    overrides = {"DEFAULT": {"enabled_backends": ["one"], "host": "here"}, "one": {"volume_driver": "fake", **options}}
    return Backends.from_conf(configuration.load([], overrides=overrides)).get("one")


def test_options_reach_the_backend_when_it_is_loaded() -> None:
    backend = loaded(driver_call_timeouts={"create_volume": "12"}, driver_timeout_seconds=3.0)
    assert backend.call_seconds("create_volume") == 12.0
    assert backend.call_seconds("volume_exists") == 3.0
    assert backend.call_seconds("migrate_volume") == 86400.0
    assert backend.timeout_seconds == 12.0


def test_a_mistake_is_found_when_the_backend_is_loaded() -> None:
    with pytest.raises(errors.ConfigOptionInvalid, match=r"driver_call_timeouts in \[one\].*'creat_volume'"):
        loaded(driver_call_timeouts={"creat_volume": "12"})


def test_a_file_gives_times(tmp_path: Any) -> None:
    path = tmp_path / "volmig.conf"
    text = "[DEFAULT]\nenabled_backends = one\nhost = here\n[one]\nvolume_driver = fake\n"
    path.write_text(text + "driver_call_timeouts = create_volume:9, delete_volume:8.5\ndriver_retries = 0\n")
    backend = Backends.from_conf(configuration.load([str(path)])).get("one")
    assert (backend.call_seconds("create_volume"), backend.call_seconds("delete_volume")) == (9.0, 8.5)
    path.write_text(text + "driver_call_timeouts = create_volume\n")
    with pytest.raises(errors.ConfigOptionInvalid, match="driver_call_timeouts"):
        Backends.from_conf(configuration.load([str(path)]))


def test_retries_are_those_of_the_options() -> None:
    retries = Retries.from_options({"driver_retries": 3, "driver_retry_delay_seconds": 0.5})
    assert (retries.count, retries.delay_seconds) == (3, 0.5)
    assert Retries.from_options({}).count == 0
