"""The disk's own limit: reading, writing, and both at once, past the cache, doing nothing else.

By fio where it is installed; else by threads here, which is a little less than the disk can give.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.transfer.machine import find_program, make_cold
from benchmarks.transfer.programs import RunFailed, run_all
from benchmarks.transfer.results import Limit

DEPTH = 8
ROUNDS = 3
"""A limit is what can be reached, so the best counts."""
REQUEST_BYTES = 1024 * 1024
FIO_ENGINES = ("io_uring", "libaio", "psync")


class LimitUnknown(Exception):
    """The disk could not be measured; says why."""


def measure_limit(when: str, directory: Path, size_bytes: int, check: Callable[[], None]) -> Limit:
    """Measure with files of *size_bytes* in *directory*, which are removed afterwards.

    :param when: the moment in the benchmark, for the report.
    :param check: called often; may raise to give up.
    :raises LimitUnknown: when the file system refuses direct I/O, or fails.
    """
    first, second = directory / "limit-1", directory / "limit-2"
    fio = find_program("fio")
    rounds: list[tuple[str, dict[str, float]]] = []
    with contextlib.ExitStack() as stack:
        for path in (first, second):
            stack.callback(path.unlink, missing_ok=True)
        try:
            for _ in range(ROUNDS):
                if fio:
                    rounds.append(_by_fio(fio, first, second, size_bytes, check))
                else:
                    rounds.append(_by_threads(first, second, size_bytes, check))
                first.unlink()
                second.unlink()
        except (OSError, RunFailed) as exc:
            raise LimitUnknown(f"the disk's limit is not known: {exc}") from exc
    both = max((found for _, found in rounds), key=lambda found: min(found["both_read"], found["both_write"]))
    return Limit(
        when=when,
        tool=f"{rounds[0][0]}, best of {ROUNDS}",
        read=max(found["read"] for _, found in rounds),
        write=max(found["write"] for _, found in rounds),
        both_read=both["both_read"],
        both_write=both["both_write"],
    )


def _by_fio(
    fio: str, first: Path, second: Path, size_bytes: int, check: Callable[[], None]
) -> tuple[str, dict[str, float]]:
    """Return the name of the tool and the four rates; with another way to do requests where one is refused."""
    for number, engine in enumerate(FIO_ENGINES):
        run = _FioRunner(fio, engine, size_bytes, check)
        try:
            (write,) = run({"write": (first, "write")})
        except RunFailed:
            if number + 1 == len(FIO_ENGINES):
                raise
            continue
        make_cold([first])
        (read,) = run({"read": (first, "read")})
        make_cold([first])
        both_read, both_write = run({"read": (first, "read"), "write": (second, "write")})
        depth = f"{DEPTH} in flight" if engine != "psync" else "1 in flight"
        rates = {"read": read, "write": write, "both_read": both_read, "both_write": both_write}
        return f"fio, {engine}, 1 MiB, direct, {depth}", rates
    raise RunFailed("fio has no engine that works here")


class _FioRunner:
    """Runs jobs side by side, and gives the bytes a second of each."""

    def __init__(self, fio: str, engine: str, size_bytes: int, check: Callable[[], None]) -> None:
        self._common = (
            fio,
            "--output-format=json",
            f"--ioengine={engine}",
            f"--iodepth={DEPTH}",
            f"--bs={REQUEST_BYTES}",
            f"--size={size_bytes}",
            "--direct=1",
            "--end_fsync=1",
            "--thread",  # so that killing it leaves nobody behind
        )
        self._check = check

    def __call__(self, jobs: dict[str, tuple[Path, str]]) -> list[float]:
        command = [*self._common]
        for name, (path, mode) in jobs.items():
            command += [f"--name={name}", f"--filename={path}", f"--rw={mode}"]
        with tempfile.TemporaryFile() as output:
            run_all([command], check=self._check, timeout_seconds=3600, stdout=output)
            output.seek(0)
            said: dict[str, Any] = json.loads(output.read())
        found = {job["jobname"]: job for job in said["jobs"]}
        return [float(found[name][mode]["bw_bytes"]) for name, (_, mode) in jobs.items()]


def _by_threads(first: Path, second: Path, size_bytes: int, check: Callable[[], None]) -> tuple[str, dict[str, float]]:
    """Return what :func:`_by_fio` does."""
    write = _stream(first, size_bytes, check, is_write=True)
    make_cold([first])
    read = _stream(first, size_bytes, check, is_write=False)
    make_cold([first])
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(_stream, second, size_bytes, check, is_write=True)
        both_read = _stream(first, size_bytes, check, is_write=False)
        both_write = other.result()
    rates = {"read": read, "write": write, "both_read": both_read, "both_write": both_write}
    return f"Python, 1 MiB, direct, {DEPTH} threads", rates


def _stream(path: Path, size_bytes: int, check: Callable[[], None], *, is_write: bool) -> float:
    """Read or write a whole file past the cache; return bytes a second."""
    flags = os.O_DIRECT | (os.O_WRONLY | os.O_CREAT if is_write else os.O_RDONLY)
    descriptor = os.open(path, flags, 0o600)
    try:
        if is_write:
            os.posix_fallocate(descriptor, 0, size_bytes)
        offsets = iter(range(0, size_bytes, REQUEST_BYTES))
        lock = threading.Lock()
        began = time.monotonic()
        with ThreadPoolExecutor(DEPTH) as pool:
            for done in [pool.submit(_requests, descriptor, offsets, lock, check, is_write) for _ in range(DEPTH)]:
                done.result()
        if is_write:
            os.fsync(descriptor)
        return size_bytes / (time.monotonic() - began)
    finally:
        os.close(descriptor)


def _requests(
    descriptor: int, offsets: Iterator[int], lock: threading.Lock, check: Callable[[], None], is_write: bool
) -> None:
    """Do requests, one after the other, until none is left."""
    with mmap.mmap(-1, REQUEST_BYTES) as buffer, memoryview(buffer) as view:  # aligned, as direct I/O needs it
        if is_write:
            view[:] = os.urandom(REQUEST_BYTES)
        while True:
            check()
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            moved = os.pwrite(descriptor, view, offset) if is_write else os.preadv(descriptor, [view], offset)
            if moved != REQUEST_BYTES:
                raise OSError(f"a request at {offset} moved {moved} bytes")
