"""The programs that the test bed needs, and the Debian packages that have them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from volmig.testing.vm.errors import BedIncomplete

_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program, the Debian package that has it, and what the bed needs it for."""

    name: str
    package: str
    reason: str


PROGRAMS = (
    Program(name="qemu-system-x86_64", package="qemu-system-x86", reason="emulates the machine"),
    Program(name="busybox", package="busybox-static", reason="is all of the initramfs; must be static"),
    Program(name="file", package="file", reason="virtme-ng looks at the kernel image with it"),
    Program(name="depmod", package="kmod", reason="indexes the kernel's modules; modprobe in the guest"),
    Program(name="udevadm", package="udev", reason="the guest's udevd makes the device nodes that LVM waits for"),
    Program(name="ip", package="iproute2", reason="brings the guest's loopback network up"),
    Program(name="lvm", package="lvm2", reason="volume groups; dmsetup comes with it"),
    Program(name="thin_check", package="thin-provisioning-tools", reason="LVM checks thin pools with it"),
    Program(name="sudo", package="sudo", reason="lvm_root_helper, as a user who is not root"),
    Program(name="iscsiadm", package="open-iscsi", reason="logs in to iSCSI targets"),
    Program(name="nvme", package="nvme-cli", reason="connects to NVMe/TCP subsystems"),
    Program(name="mkfs.xfs", package="xfsprogs", reason="real data in use"),
    Program(name="mkfs.ext4", package="e2fsprogs", reason="real data in use"),
)


def find_program(name: str) -> str | None:
    """Return the path of a program, looked for in PATH and where the system's own programs are."""
    directories = [os.environ.get("PATH", os.defpath), *_SYSTEM_DIRECTORIES]
    return shutil.which(name, path=os.pathsep.join(directories))


def virtme_run() -> list[str]:
    """Return the command that starts a machine: virtme-ng's own, of this environment before any other.

    :raises BedIncomplete: virtme-ng is not installed.
    """
    beside = Path(sys.prefix, "bin", "virtme-run")
    found = str(beside) if beside.exists() else find_program("virtme-run")
    if found is None:
        raise BedIncomplete("virtme-ng is not installed.", hint="Install it: pip install 'volmig[vm]'")
    return [found]


def missing(
    programs: Iterable[Program] = PROGRAMS, find: Callable[[str], str | None] = find_program
) -> tuple[Program, ...]:
    """Return those of ``programs`` that are not installed."""
    return tuple(program for program in programs if find(program.name) is None)


def install(programs: Sequence[Program], run: Callable[[Sequence[str]], None] | None = None) -> None:
    """Install the packages of ``programs`` with apt-get, without a question.

    :raises BedIncomplete: apt-get failed.
    """
    run = run or _run
    packages = packages_of(programs)
    run(["apt-get", "update", "-q"])
    run(["apt-get", "install", "-qy", "--no-install-recommends", *packages])


def packages_of(programs: Iterable[Program]) -> tuple[str, ...]:
    """Return the packages of ``programs``, each once, in order."""
    return tuple(dict.fromkeys(program.package for program in programs))


def prepare(
    programs: Sequence[Program] = PROGRAMS,
    *,
    find: Callable[[str], str | None] = find_program,
    run: Callable[[Sequence[str]], None] | None = None,
    is_root: bool | None = None,
) -> None:
    """See to it that everything is installed: as root on Debian by apt-get, otherwise by telling what is missing.

    :raises BedIncomplete: something is missing and could not be installed; the hint is the command that does it.
    """
    absent = missing(programs, find)
    if not absent:
        return
    may_install = os.geteuid() == 0 if is_root is None else is_root
    if may_install and find("apt-get") is not None:
        install(absent, run)
        absent = missing(programs, find)
        if not absent:
            return
    lines = [f"{program.name} (Debian package {program.package}): {program.reason}" for program in absent]
    raise BedIncomplete(
        "The test bed needs programs that are not installed:\n  " + "\n  ".join(lines),
        hint="Install them: sudo apt-get install --no-install-recommends " + " ".join(packages_of(absent)),
    )


def _run(command: Sequence[str]) -> None:
    # To stderr, with what the caller's own command says on stdout left alone.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise BedIncomplete(f"{' '.join(command)} failed with status {done.returncode}; it said why above.")
