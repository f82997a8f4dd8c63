"""Which tests run in the machine, and which on the host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import vm_tier
from volmig.testing.vm import BedError, BootFailed


def test_the_tier_runs_tests_where_they_belong():
    results = Path("/results")
    (inside,) = vm_tier.commands(results, ["tests/vm/test_x.py", "-k", "y"])
    assert inside[-3:] == ["tests/vm/test_x.py", "-k", "y"]
    assert "volmig.testing.vm" in inside
    (outside,) = vm_tier.commands(results, ["tests/power/test_z.py"])
    assert "volmig.testing.vm" not in outside
    (all_inside,) = vm_tier.commands(results, ["-k", "y"])
    assert all_inside[-3:] == ["-k", "y", "tests/vm"]
    with pytest.raises(SystemExit, match="not of both"):
        vm_tier.commands(results, ["tests/vm/test_x.py", "tests/power/test_z.py"])


def test_every_file_of_the_tier_is_run_and_the_longest_come_first():
    files = vm_tier.test_files(Path(vm_tier.GUEST_TESTS))
    assert sorted(files) == sorted(str(path) for path in Path("tests/vm").glob("test_*.py"))
    assert files[0] == f"tests/vm/test_{vm_tier._LONGEST[0]}.py"


class Machine:
    """A stand-in for a virtual machine: it says what it is told to say of each file."""

    boot_seconds = 1.0

    def __init__(self, options, *, output):
        self._output = output

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, command, *, timeout_seconds):
        self._output.write(f"ran {command[-1]}\n".encode())
        if command[-1] == "breaks":
            raise BedError("it broke down")
        return int(command[-1] == "fails")


@pytest.fixture
def on_host(monkeypatch):
    """Stand in for the tests that run on the host; give what sets the status that they end with."""

    def ends_with(status):
        program = f"print('ran on the host', flush=True); raise SystemExit({status})"
        monkeypatch.setattr(vm_tier, "commands", lambda *_: [[sys.executable, "-c", program]])

    ends_with(0)
    return ends_with


def test_what_failed_and_what_no_machine_could_run_is_told(monkeypatch, tmp_path, capfdbinary, on_host):
    monkeypatch.setattr(vm_tier, "VirtualMachine", Machine)
    assert vm_tier.run_all(["a", "breaks", "b", "fails", "c"], tmp_path) == ["breaks", "fails"]
    said = capfdbinary.readouterr().out.decode()
    assert all(f"ran {name}\n" in said for name in ("a", "breaks", "b", "fails", "c", "on the host"))
    assert "it broke down" in said


def test_the_tests_of_the_host_count(monkeypatch, tmp_path, on_host):
    monkeypatch.setattr(vm_tier, "VirtualMachine", Machine)
    on_host(1)
    assert vm_tier.run_all(["a"], tmp_path) == [vm_tier.HOST_TESTS]


def test_machines_that_do_not_boot_leave_everything_undone(monkeypatch, tmp_path, on_host):
    def boot(*_, **__):
        raise BootFailed("it does not boot")

    monkeypatch.setattr(vm_tier, "VirtualMachine", boot)
    assert vm_tier.run_all(["a", "b", "c"], tmp_path) == ["a", "b", "c"]
