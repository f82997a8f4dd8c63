"""Faults that the fake driver can be told to have.

A fault is written ``METHOD[@N]:ACTION[=ARGUMENT]``. METHOD is a method of the contract and N the number of the call
that is hit, counted from 1 since the fault was added; without N every call is. The actions:

* ``fail[=CODE]``: raise before there is any effect; a CODE of :mod:`volmig.errors` chooses that error.
* ``fail_after[=CODE]``: raise after the whole effect.
* ``delay=SECONDS``: wait, then go on.
* ``hang[=SECONDS]``: wait until :meth:`FaultPlan.release` or for that time, then go on.
* ``nonsense``: return something that the contract does not allow, after the effect.
* ``wrong_size=DELTA``: ``create_volume`` makes an object that is DELTA bytes larger, or smaller, than asked.
* ``garbage``: ``create_volume`` and ``extend_volume`` leave random bytes where zeroes were promised.

Handles of ``open_volume`` have faults at a byte of the volume: ``write@OFFSET:lost|eio|enospc|flip`` and
``read@OFFSET:eio|short``. ``lost`` drops the whole request that covers the byte and reports success; ``short`` ends the
volume there.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from volmig import errors
from volmig.drivers.base import VolumeDriver

R = TypeVar("R")

_SPEC = re.compile(
    r"(?P<method>[a-z_]+)(?:@(?P<at>\d{1,18}))?:(?P<action>[a-z_]+)(?:=(?P<argument>[A-Za-z0-9_.+\-]+))?"
)
_IO_ACTIONS = {"write": frozenset({"lost", "eio", "enospc", "flip"}), "read": frozenset({"eio", "short"})}
_ONLY_FOR = {"wrong_size": {"create_volume"}, "garbage": {"create_volume", "extend_volume"}}
_ARGUMENTS = {
    "fail": "optional",
    "fail_after": "optional",
    "delay": "required",
    "hang": "optional",
    "nonsense": "none",
    "wrong_size": "required",
    "garbage": "none",
}
_UPDATES = frozenset(
    {"create_volume", "update_migrated_volume", "manage_existing", "create_export"}  # they return an update
)
_MAX_SECONDS = 3600.0


class FakeFault(RuntimeError):
    """The error of a faulty backend: not one of volmig's, as a careless driver's would be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault, parsed."""

    spec: str
    method: str
    at: int | None
    """Number of the call, or for ``read`` and ``write`` the byte; None for every call."""
    action: str
    argument: str | None
    number: float = 0.0
    """The argument as a number, for actions that take one."""

    @classmethod
    def parse(cls, spec: str) -> Fault:
        """Return the fault that *spec* describes. :raises ValueError: saying what is wrong with it."""
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise ValueError("it is not of the form METHOD[@N]:ACTION[=ARGUMENT]")
        method, action, argument = match["method"], match["action"], match["argument"]
        at = None if match["at"] is None else int(match["at"])
        if method in _IO_ACTIONS:
            if at is None:
                raise ValueError(f"{method} needs a byte: {method}@OFFSET:{action}")
            if action not in _IO_ACTIONS[method] or argument is not None:
                raise ValueError(
                    f"{method} knows the actions {', '.join(sorted(_IO_ACTIONS[method]))}, without argument"
                )
            return cls(spec=spec, method=method, at=at, action=action, argument=None)
        if method not in contract_methods():
            raise ValueError(f"the contract has no method {method!r}")
        if at == 0:
            raise ValueError("calls are counted from 1")
        if action not in _ARGUMENTS:
            raise ValueError(f"the actions are {', '.join(_ARGUMENTS)}")
        if method not in _ONLY_FOR.get(action, {method}):
            raise ValueError(f"{action} is only for {', '.join(sorted(_ONLY_FOR[action]))}")
        if (argument is None and _ARGUMENTS[action] == "required") or (argument and _ARGUMENTS[action] == "none"):
            raise ValueError(f"the argument of {action} is {_ARGUMENTS[action]}")
        number = _check_argument(action, argument)
        return cls(spec=spec, method=method, at=at, action=action, argument=argument, number=number)

    def error(self) -> Exception:
        """Return what this fault raises."""
        for cls in errors.catalogue():
            if cls.code == self.argument:
                return cls(**dict.fromkeys(cls.field_names(), "fault"))
        return FakeFault(f"fault {self.spec}")


def _check_argument(action: str, argument: str | None) -> float:
    if argument is None:
        return 0.0
    if action in {"delay", "hang"}:
        seconds = float(argument)
        if not 0 <= seconds <= _MAX_SECONDS:
            raise ValueError(f"{argument} is not a number of seconds from 0 to {_MAX_SECONDS:.0f}")
        return seconds
    if action == "wrong_size":
        return int(argument)
    if action in {"fail", "fail_after"} and argument not in {cls.code for cls in errors.catalogue()}:
        raise ValueError(f"{argument!r} is not the code of an error")
    return 0.0


def contract_methods() -> frozenset[str]:
    """Return the names of the methods that can have faults."""
    return frozenset(
        name
        for name, value in vars(VolumeDriver).items()
        if callable(value) and not name.startswith("_") and name not in {"address", "get_driver_options"}
    )


class FaultPlan:
    """The faults of one fake driver; may be changed while other threads are in its calls."""

    def __init__(self, specs: Iterable[str] = (), *, group: str = "fake") -> None:
        self._group = group
        self._changed = threading.Condition()
        self._faults: list[tuple[Fault, list[int]]] = []  # each with its count of calls, alone in a list
        self._releases = 0
        self._running = threading.local()
        for spec in specs:
            self.add(spec)

    def add(self, spec: str) -> None:
        """Have one more fault. :raises volmig.errors.ConfigOptionInvalid: when *spec* is malformed."""
        try:
            fault = Fault.parse(spec)
        except ValueError as exc:
            raise errors.ConfigOptionInvalid(
                option="fake_faults",
                group=self._group,
                source="the backend's options",
                reason=f"{spec!r} is not a fault: {exc}",
            ) from exc
        with self._changed:
            self._faults.append((fault, [0]))

    def clear(self) -> None:
        """Have no more faults, and let hanging calls go on."""
        with self._changed:
            self._faults.clear()
        self.release()

    def release(self) -> None:
        """Let the calls that hang at present go on; later ones hang again."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def run(self, method: str, body: Callable[[], R]) -> R:
        """Make one call of *method*, with the faults that hit it."""
        hits = self._count_call(method)
        for fault in hits:
            if fault.action == "delay":
                time.sleep(fault.number)
            elif fault.action == "hang":
                self._hang(fault.number if fault.argument is not None else None)
            elif fault.action == "fail":
                raise fault.error()
        self._running.hits = hits
        try:
            result = body()
        finally:
            self._running.hits = ()
        for fault in hits:
            if fault.action == "fail_after":
                raise fault.error()
            if fault.action == "nonsense":
                return cast(R, _nonsense(method))
        return result

    def in_this_call(self, action: str) -> Fault | None:
        """Return the fault of that action which hits the call that this thread is in."""
        hits: Iterable[Fault] = getattr(self._running, "hits", ())
        return next((fault for fault in hits if fault.action == action), None)

    def at_bytes(self, direction: str, start: int, length: int) -> Fault | None:
        """Return the first fault of ``read`` or ``write`` whose byte lies in the range."""
        with self._changed:
            hits = [
                fault
                for fault, _ in self._faults
                if fault.method == direction and fault.at is not None and start <= fault.at < start + length
            ]
        return min(hits, key=lambda fault: fault.at or 0, default=None)

    def _count_call(self, method: str) -> tuple[Fault, ...]:
        hits = []
        with self._changed:
            for fault, calls in self._faults:
                if fault.method == method:
                    calls[0] += 1
                    if fault.at is None or fault.at == calls[0]:
                        hits.append(fault)
        return tuple(hits)

    def _hang(self, seconds: float | None) -> None:
        with self._changed:
            before = self._releases
            self._changed.wait_for(lambda: self._releases != before, timeout=seconds)


def _nonsense(method: str) -> Any:
    if method in _UPDATES:
        return {"size_bytes": "nonsense"}
    if method in {"migrate_volume", "recover_migration", "retype"}:
        return True, {"size_bytes": "nonsense"}
    if method == "get_volume_stats":
        return {"pools": [{"pool_name": 7}]}
    return "nonsense"
