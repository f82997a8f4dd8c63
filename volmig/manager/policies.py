"""How each call of a driver is treated: how long it may take, and what happens when the storage fails it for now."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from volmig import errors

_CALL: Final = "driver_timeout_seconds"
_MIGRATE: Final = "driver_migrate_timeout_seconds"
_TIMES: Final = "driver_call_timeouts"
_LEAST_SECONDS: Final = 0.1
_MOST_SECONDS: Final = 30 * 86400.0


class Repetition(enum.Enum):
    """What happens when the storage fails a call for the moment."""

    RETRY = "retry"
    """The call is repeated after a pause: done twice it has the effect of once, or it has none."""
    FAIL = "fail"
    """It is made once, since the contract does not promise that it can be repeated."""
    ASK = "ask"
    """It is repeated when the driver says by StorageBusy that it has not begun. After anything else its outcome is not
    known, and the drivers are asked where the volume is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallPolicy:
    """How the calls of one method are treated."""

    method: str
    repetition: Repetition
    reason: str
    """Why it may be repeated, or may not."""
    timeout_option: str = _CALL
    """The option that says how long a call may take, unless ``driver_call_timeouts`` names the method."""


def _table(*policies: CallPolicy) -> Mapping[str, CallPolicy]:
    return MappingProxyType({policy.method: policy for policy in policies})


def _retry(method: str, reason: str) -> CallPolicy:
    return CallPolicy(method=method, repetition=Repetition.RETRY, reason=reason)


def _fail(method: str, reason: str) -> CallPolicy:
    return CallPolicy(method=method, repetition=Repetition.FAIL, reason=reason)


POLICIES: Final = _table(
    _retry("do_setup", "one that failed is repeated before the next call in any case"),
    _retry("check_for_setup_error", "it only looks"),
    _retry("setup_storage", "it succeeds without change when the storage is there"),
    _retry("teardown_storage", "it succeeds when there is no storage"),
    _retry("get_volume_stats", "it only looks"),
    _retry("volume_exists", "it only looks"),
    _retry("identify_object", "it only looks"),
    _retry("list_objects", "it only looks"),
    _retry("recover_migration", "it only looks"),
    _retry("manage_existing_get_size", "it only looks"),
    _retry("create_volume", "it succeeds when the object is there already"),
    _retry("delete_volume", "it succeeds when there is no object"),
    _retry("delete_object", "it succeeds when there is no object, or another one"),
    _retry("extend_volume", "it succeeds when the object has that size"),
    _retry("initialize_connection", "repeated, it gives the same answer"),
    _retry("terminate_connection", "it succeeds when there is no connection"),
    _retry("update_migrated_volume", "repeated after success, it gives the same answer"),
    _retry("create_snapshot", "it succeeds when the snapshot is there"),
    _retry("delete_snapshot", "it succeeds when there is no snapshot"),
    _retry("create_export", "repeated, it gives the same answer"),
    _retry("remove_export", "it succeeds when there is no export"),
    _retry("list_exports", "it only looks"),
    _fail("open_volume", "a handle that an earlier call has opened, and not returned, could still be open"),
    _fail("manage_existing", "the object may have been renamed, and the reference names it no more"),
    _fail("unmanage", "the object may have been let go, and have another owner"),
    _fail("retype", "nobody can say how far the change has come"),
    CallPolicy(
        method="migrate_volume",
        repetition=Repetition.ASK,
        reason="the volume may be at either place",
        timeout_option=_MIGRATE,
    ),
)
"""All methods of the contract that the core calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTimes:
    """How long each call of one backend's driver may take."""

    seconds: Mapping[str, float]
    """By method; every one of :data:`POLICIES`."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, group: str) -> CallTimes:
        """Take the times from a backend's options.

        :param group: the backend's group in the configuration, for errors.
        :raises volmig.errors.ConfigOptionInvalid: when ``driver_call_timeouts`` names a method that there is not, or
            has a time that is no number of seconds from 0.1 to 30 days.
        """
        seconds = {method: float(options[policy.timeout_option]) for method, policy in POLICIES.items()}
        for method, text in (options.get(_TIMES) or {}).items():
            if method not in POLICIES:
                raise _invalid(group, f"there is no method {method!r}; the methods are {', '.join(sorted(POLICIES))}")
            seconds[method] = _number(group, method, text)
        return cls(seconds=MappingProxyType(seconds))

    @property
    def longest_seconds(self) -> float:
        """How long any call may take, other than those that have ``driver_migrate_timeout_seconds``."""
        return max(time for method, time in self.seconds.items() if POLICIES[method].timeout_option == _CALL)


def _number(group: str, method: str, text: object) -> float:
    try:
        number = math.nan if isinstance(text, bool) else float(str(text))
    except ValueError as error:
        raise _invalid(group, f"the time of {method} is {text!r}, not a number of seconds") from error
    if not (math.isfinite(number) and _LEAST_SECONDS <= number <= _MOST_SECONDS):
        bounds = f"from {_LEAST_SECONDS:g} to {_MOST_SECONDS:.0f}"
        raise _invalid(group, f"the time of {method} is {text!r}, and it must be {bounds} seconds")
    return number


def _invalid(group: str, reason: str) -> errors.ConfigOptionInvalid:
    return errors.ConfigOptionInvalid(option=_TIMES, group=group, source="the backend's options", reason=reason)
