"""Run the tier that needs virtual machines: ``python -m tests.vm_tier --results DIRECTORY -- [pytest arguments]``.

Tests in ``tests/vm`` run in a machine, tests in ``tests/power`` on the host, where they boot machines of their own.
Without arguments all run, two machines at once: the files of ``tests/vm``, each in a pytest of its own, and meanwhile
``tests/power``. What failed is named at the end.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volmig.testing.vm import BedError, MachineOptions, VirtualMachine, prepare

GUEST_TESTS, HOST_TESTS = "tests/vm", "tests/power"
# All is emulated in the machine: a test that takes a second elsewhere takes ten.
_GUEST_PYTEST = ("pytest", "--timeout=900", "-p", "no:cacheprovider", "--basetemp=/dev/shm/pytest")
_HOST_PYTEST = ("pytest", "--timeout=1800")
_FILE_SECONDS = 2400.0
_MACHINES = 2
"""How many at once: emulation keeps a processor busy for each."""

_LONGEST = ("lvm_killsweep", "matrix", "lvm_conformance", "lvm_faults", "lvm_moves", "export_iscsi", "loopback")
"""Files that take minutes, longest first: begun last, one of them would be waited for alone."""


def commands(results: Path, given: Sequence[str]) -> list[list[str]]:
    """Return the commands that run what was asked for, one after the other."""
    machine = [sys.executable, "-m", "volmig.testing.vm", "--results", str(results), "--timeout", "3600", "--"]
    inside = [*machine, *_GUEST_PYTEST, "--junit-xml=/run/volmig-vm/results/junit.xml"]
    outside = [sys.executable, "-m", *_HOST_PYTEST, f"--junit-xml={results / 'junit-power.xml'}"]
    is_for_host = [argument.startswith(HOST_TESTS) for argument in given]
    is_for_guest = [argument.startswith(GUEST_TESTS) for argument in given]
    if any(is_for_host) and any(is_for_guest):
        raise SystemExit(f"Give tests of {GUEST_TESTS} or of {HOST_TESTS}, not of both.")
    if any(is_for_host):
        return [[*outside, *given]]
    return [[*inside, *given, *([] if any(is_for_guest) else [GUEST_TESTS])]]


def test_files(directory: Path) -> list[str]:
    """Return the files of tests in a directory, those that take longest first."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(_LONGEST)}
    names = sorted((path.name for path in directory.glob("test_*.py")), key=lambda name: (ranks.get(name, 99), name))
    return [f"{directory}/{name}" for name in names]


class _Kept:
    """Takes a machine's output, and gives what has come since it was asked last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffer = io.BytesIO()

    def write(self, data: bytes, /) -> object:
        with self._lock:
            return self._buffer.write(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        with self._lock:
            taken = self._buffer.getvalue()
            self._buffer = io.BytesIO()
        return taken


@dataclass
class _Files:
    """The files that are left to run, and how the others ended."""

    left: list[str]
    passed: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str | None:
        with self.lock:
            return self.left.pop(0) if self.left else None

    def ended(self, file: str, status: int, seconds: float, said: bytes) -> None:
        with self.lock:
            if not status:
                self.passed.add(file)
            sys.stdout.write(f"\n--- {file}: status {status} after {seconds:.0f} s\n")
            sys.stdout.flush()
            sys.stdout.buffer.write(said)
            sys.stdout.flush()


def run_all(files: Sequence[str], results: Path) -> list[str]:
    """Run files of tests in several machines at once, and the host's tests in place of one machine until they have
    ended; return what failed, or could not be run.
    """
    queue = _Files(list(files))

    def serve(number: int) -> None:
        if number == 0:
            _run_on_host(queue, results)
        _serve(queue, results / f"machine-{number}")

    workers = [threading.Thread(target=serve, args=(number,), name=f"machine-{number}") for number in range(_MACHINES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [tests for tests in (*files, HOST_TESTS) if tests not in queue.passed]


def _run_on_host(queue: _Files, results: Path) -> None:
    began = time.monotonic()
    [command] = commands(results, [HOST_TESTS])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    queue.ended(HOST_TESTS, done.returncode, time.monotonic() - began, done.stdout)


def _serve(queue: _Files, results: Path) -> None:
    """Run one file after the other in a machine, and in a new one after a machine that broke down.

    When a machine does not even boot, what is left is left to the other worker.
    """
    file = queue.next()
    while file is not None:
        kept = _Kept()
        try:
            with VirtualMachine(MachineOptions(cpus=1, results=results), output=kept) as machine:
                print(f"{results.name}: ready after {machine.boot_seconds:.0f} s", flush=True)  # noqa: T201
                while file is not None:
                    began = time.monotonic()
                    junit = f"--junit-xml=/run/volmig-vm/results/{Path(file).stem}.xml"
                    try:
                        status = machine.run([*_GUEST_PYTEST, junit, file], timeout_seconds=_FILE_SECONDS)
                    except BedError as error:
                        queue.ended(file, 125, time.monotonic() - began, kept.take() + f"\n{error}\n".encode())
                        break
                    queue.ended(file, status, time.monotonic() - began, kept.take())
                    file = queue.next()
        except BedError as error:
            sys.stdout.write(f"{results.name}: {error}\n")
            return
        if file is not None:
            file = queue.next()


def main() -> int:
    """Run what the command line asks for; return a status that is not 0 when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("given", nargs="*")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    if options.given:
        asked = commands(options.results, options.given)
        return max(subprocess.run(command, check=False).returncode for command in asked)
    prepare()
    failed = run_all(test_files(Path(GUEST_TESTS)), options.results)
    if failed:
        sys.stderr.write(f"These failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
