"""Scenarios in processes that have a defect, which the sweep must find; and one with a program that takes long."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from volmig.drivers._directory import OpenDirectory
from volmig.drivers.file import FileDriver
from volmig.store.writing import SqlWriteTransaction
from volmig.testing import patterns
from volmig.testing.killsweep import FileBench, Scenario, migrate_plainly
from volmig.testing.killsweep.bench import MIB
from volmig.testing.killsweep.cases import checkpoint_each_segment

_FILES = FileBench({"volume_driver": "file"})


def _forget(*_: Any, **__: Any) -> None:
    """Do nothing."""


def forget_deletion() -> None:
    FileDriver.delete_object = _forget  # type: ignore[method-assign]


def forget_reservation() -> None:
    SqlWriteTransaction.release = _forget  # type: ignore[method-assign]


def forget_checkpoint() -> None:
    checkpoint_each_segment()
    SqlWriteTransaction.remove_checkpoint = _forget  # type: ignore[method-assign]


def forget_temporary_files() -> None:
    OpenDirectory.clear_leftovers = _forget  # type: ignore[method-assign]


def spoil_data() -> None:
    rename = FileDriver.update_migrated_volume

    @functools.wraps(rename)
    def spoiling(driver: FileDriver, *arguments: Any) -> Any:
        answer = rename(driver, *arguments)
        with open(f"{driver.options['file_directory']}/volume-{arguments[1].id}", "r+b") as file:
            file.write(b"spoilt")
        return answer

    FileDriver.update_migrated_volume = spoiling  # type: ignore[method-assign]


def _sparse(size_bytes: int) -> patterns.Pattern:
    ranges = ((at, at + 4096) for at in range(0, size_bytes, 16 * MIB))
    return patterns.Pattern(size_bytes=size_bytes, seed=5, data=tuple(ranges))


def _scenario(name: str, defect: Callable[[], None], **fields: Any) -> Scenario:
    return Scenario(name=name, bench=_FILES, act=migrate_plainly(force_host_copy=True), adjust=defect, **fields)


LONG_PROGRAM = Scenario(
    name="long-program",
    bench=_FILES,
    act=migrate_plainly(force_host_copy=True, engine="dd"),
    pattern=_sparse(2048 * MIB),
)

SCENARIOS = (
    _scenario("forget-deletion", forget_deletion),
    _scenario("forget-reservation", forget_reservation),
    _scenario("forget-checkpoint", forget_checkpoint, pattern=_sparse(160 * MIB)),
    _scenario("forget-temporary-files", forget_temporary_files),
    _scenario("spoil-data", spoil_data),
    LONG_PROGRAM,
)
