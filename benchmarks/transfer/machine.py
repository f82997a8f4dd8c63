"""The machine that is measured on: what it is, its caches, and how busy it is."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from volmig import __version__

PACKAGES = {
    "dd": "coreutils",
    "cp": "coreutils",
    "sync": "coreutils",
    "qemu-img": "qemu-utils",
    "nbdcopy": "libnbd-bin",
    "fio": "fio",
    "losetup": "mount",
}
"""The Debian package of each program."""

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_BUSY_FIELDS = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of /proc/stat (proc_stat(5))


def find_program(name: str) -> str | None:
    """Return the path of a program; system directories are looked in too, as they are not on everybody's path."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


def can_drop_caches() -> bool:
    """Return whether this process may empty the page cache."""
    return os.geteuid() == 0 and os.access(_DROP_CACHES, os.W_OK)


def make_cold(files: Iterable[Path]) -> None:
    """Bring everything to storage, and empty the cache: all of it where that is allowed, else of *files*."""
    os.sync()
    if can_drop_caches():
        _DROP_CACHES.write_text("3\n")
        return
    for file in files:
        with file.open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def busy_seconds() -> float:
    """Return the processor time that everything on this machine has used so far, the kernel's own threads included."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    return sum(int(fields[number]) for number in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def file_system_of(directory: Path) -> str:
    """Return the type of the file system that a directory is on."""
    device = os.stat(directory).st_dev  # noqa: PTH116 - one look, as mountinfo has it
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, after = line.split(" - ", 1)
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"


def version_of(program: str) -> str:
    """Return what a program says of its version, in one line."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=60)
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"


def facts(directory: Path) -> dict[str, str]:
    """Return what a reader must know of the machine; nothing that tells whose it is."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return {
        "processor": f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} visible",
        "memory": f"{int(memory[1]) / 1024**2:.1f} GiB" if memory else "unknown",
        "kernel": f"Linux {platform.release()}",
        "file system": file_system_of(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "caches": (
            "dropped before each run (sync, drop_caches 3)"
            if can_drop_caches()
            else "of the files at both ends dropped before each run (sync, POSIX_FADV_DONTNEED); needs root for more"
        ),
        **{name: version_of(path) for name in sorted(PACKAGES) if (path := find_program(name)) is not None},
        "volmig": __version__,
    }
