"""Missing programs are installed by root, and told to everybody else."""

from __future__ import annotations

import pytest

from volmig.testing.vm import BedIncomplete, packages
from volmig.testing.vm.packages import PROGRAMS, Program

ONE = Program(name="one", package="package-one", reason="is the first")
TWO = Program(name="two", package="package-both", reason="is the second")
THREE = Program(name="three", package="package-both", reason="is the third")


class Machine:
    """A machine with programs, and an apt-get that installs, or that does not."""

    def __init__(self, *installed: str, installs: bool = True) -> None:
        self.installed = set(installed)
        self.installs = installs
        self.commands: list[list[str]] = []

    def find(self, name):
        return f"/usr/bin/{name}" if name in self.installed else None

    def run(self, command):
        self.commands.append(list(command))
        if self.installs and "install" in command:
            self.installed |= {program.name for program in (ONE, TWO, THREE) if program.package in command}


def _prepare(machine, *, is_root):
    packages.prepare((ONE, TWO, THREE), find=machine.find, run=machine.run, is_root=is_root)


def test_nothing_is_run_where_nothing_is_missing():
    machine = Machine("apt-get", "one", "two", "three")
    _prepare(machine, is_root=True)
    assert machine.commands == []


def test_root_installs_just_what_is_missing_each_package_once():
    machine = Machine("apt-get", "one")
    _prepare(machine, is_root=True)
    assert machine.commands[-1] == ["apt-get", "install", "-qy", "--no-install-recommends", "package-both"]


@pytest.mark.parametrize(
    ("machine", "is_root"),
    [
        (Machine("apt-get", "one"), False),
        (Machine("one"), True),
        (Machine("apt-get", "one", installs=False), True),
    ],
    ids=["not root", "no apt-get", "a package without its program"],
)
def test_otherwise_the_error_names_programs_packages_reasons_and_the_command(machine, is_root):
    with pytest.raises(BedIncomplete) as caught:
        _prepare(machine, is_root=is_root)
    assert "two (Debian package package-both): is the second" in caught.value.message
    assert "one (" not in caught.value.message
    assert caught.value.hint.endswith("apt-get install --no-install-recommends package-both")


def test_an_installation_that_fails_says_so():
    with pytest.raises(BedIncomplete, match="false failed with status 1"):
        packages._run(["false"])


def test_each_program_of_the_table_has_a_package_and_a_reason():
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    assert all(program.package and program.reason for program in PROGRAMS)
