"""Drivers whose calls, and the system calls and programs within, are points to be killed at.

Classes are changed in place: only for processes that end soon after, as those of the sweep do.
"""

from __future__ import annotations

import functools
import os
import subprocess
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any

from oslo_config import cfg

from volmig import conf as configuration
from volmig.drivers import VolumeDriver, _syscalls
from volmig.drivers.loader import load_driver
from volmig.testing.killsweep.marks import Marks

# What says something of the driver, and what only an operator asks for.
_PASSED_OVER = frozenset({"address", "get_driver_options", "stored_size", "setup_storage", "teardown_storage"})
METHODS = tuple(
    name
    for name, value in vars(VolumeDriver).items()
    if isinstance(value, FunctionType) and not name.startswith("_") and name not in _PASSED_OVER
)
"""The methods of the contract, by which a driver does something."""

SYSTEM_CALLS: tuple[tuple[Any, str], ...] = (
    *(
        (os, name)
        for name in (
            "fsync",
            "fdatasync",
            "ftruncate",
            "posix_fallocate",
            "link",
            "mkdir",
            "rename",
            "replace",
            "rmdir",
            "unlink",
            "write",
        )
    ),
    (_syscalls, "rename_without_overwriting"),
)
"""Functions, by module and name, that change something in a storage of files."""


class _Calls(threading.local):
    """The driver's calls that a thread is in."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.program = ""
        """The program that is being run for the innermost of them; empty when none is."""


class MarkedCalls:
    """Marks the calls of drivers, before and after, and within them each system call, after it."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._calls = _Calls()

    def mark_drivers(self, conf: cfg.ConfigOpts) -> None:
        """Mark the methods of the drivers that a configuration enables."""
        for cls in {load_driver(configuration.driver_name(conf, name)).cls for name in conf.enabled_backends}:
            for name in METHODS:
                setattr(cls, name, self._marked_method(getattr(cls, name), name))

    def mark_system_calls(self, functions: Iterable[tuple[Any, str]] = SYSTEM_CALLS) -> None:
        """Mark functions, given as module and name, where a driver calls them."""
        for module, name in functions:
            setattr(module, name, self._marked_function(getattr(module, name), name))

    def mark_programs(self, cls: type, name: str, *, passed_over: Collection[str] = ()) -> None:
        """Mark the programs that a driver runs in its calls: when one has begun, and when it has ended.

        A process that is killed at the first leaves the program running, as a crash does.

        :param cls: the class whose method runs programs, and waits for each by ``Popen.communicate``.
        :param name: that method, which takes the program and its arguments.
        :param passed_over: programs that change nothing, of which nothing can be left.
        """
        marks, calls, run = self._marks, self._calls, getattr(cls, name)
        communicate = subprocess.Popen.communicate

        @functools.wraps(run)
        def marked_run(runner: Any, *arguments: str, **kwargs: Any) -> Any:
            program = Path(arguments[0]).name
            if not calls.names or program in passed_over:
                return run(runner, *arguments, **kwargs)
            calls.program = f"{calls.names[-1]}: {program}"
            try:
                answer = run(runner, *arguments, **kwargs)
            finally:
                calls.program = ""
            marks.reach(f"{calls.names[-1]}: {program} ended")
            return answer

        @functools.wraps(communicate)
        def marked_communicate(process: subprocess.Popen[bytes], *args: Any, **kwargs: Any) -> Any:
            if calls.program:
                marks.reach(f"{calls.program} begun")
            return communicate(process, *args, **kwargs)

        setattr(cls, name, marked_run)
        setattr(subprocess.Popen, "communicate", marked_communicate)  # noqa: B010

    def _marked_method(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        marks, calls = self._marks, self._calls

        @functools.wraps(method)
        def marked(driver: VolumeDriver, /, *args: Any, **kwargs: Any) -> Any:
            call = f"{driver.backend}.{name}"
            marks.reach(f"{call} before")
            calls.names.append(call)
            try:
                answer = method(driver, *args, **kwargs)
            finally:
                calls.names.pop()
            marks.reach(f"{call} after")
            return answer

        return marked

    def _marked_function(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        marks, calls = self._marks, self._calls

        @functools.wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            if calls.names:
                marks.reach(f"{calls.names[-1]}: {name}")
            return answer

        return marked
