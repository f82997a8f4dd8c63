"""Run the tier that needs virtual machines: ``python -m tests.vm_tier --results DIRECTORY -- [pytest arguments]``.

Tests in ``tests/vm`` run in a machine, tests in ``tests/power`` on the host, where they boot machines of their own.
Without arguments both run, the second also if the first failed; pytest's closing line is the last on stdout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

GUEST_TESTS, HOST_TESTS = "tests/vm", "tests/power"
# All is emulated in the machine: a test that takes a second elsewhere takes ten.
_GUEST_PYTEST = ("pytest", "--timeout=600", "-p", "no:cacheprovider", "--basetemp=/dev/shm/pytest")
_HOST_PYTEST = ("pytest", "--timeout=1800")


def commands(results: Path, given: Sequence[str]) -> list[list[str]]:
    """Return the commands to run, one after the other."""
    machine = [sys.executable, "-m", "volmig.testing.vm", "--results", str(results), "--timeout", "3600", "--"]
    inside = [*machine, *_GUEST_PYTEST, "--junit-xml=/run/volmig-vm/results/junit.xml"]
    outside = [sys.executable, "-m", *_HOST_PYTEST, f"--junit-xml={results / 'junit-power.xml'}"]
    if not given:
        return [[*inside, GUEST_TESTS], [*outside, HOST_TESTS]]
    is_for_host = [argument.startswith(HOST_TESTS) for argument in given]
    is_for_guest = [argument.startswith(GUEST_TESTS) for argument in given]
    if any(is_for_host) and any(is_for_guest):
        raise SystemExit(f"Give tests of {GUEST_TESTS} or of {HOST_TESTS}, not of both.")
    if any(is_for_host):
        return [[*outside, *given]]
    return [[*inside, *given, *([] if any(is_for_guest) else [GUEST_TESTS])]]


def main() -> int:
    """Run what the command line asks for; return the first status that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("given", nargs="*")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    statuses = [subprocess.run(command, check=False).returncode for command in commands(options.results, options.given)]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
