"""The two ends of a run: files, or loop devices over files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.transfer.machine import find_program

FILE = "file"
LOOP = "loop"
KINDS = (FILE, LOOP)
TITLES = {FILE: "file to file", LOOP: "loop device to loop device"}

_GONE_SECONDS = 10.0
_TRIAL_BYTES = 1024 * 1024


class EndsUnusable(Exception):
    """Loop devices cannot be had here; says why."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one run copies."""

    kind: str
    source: str
    destination: str
    size_bytes: int
    clones: bool
    """The file system can share blocks between files, so that a program could seem to copy without copying."""


def unusable(kind: str, directory: Path) -> str:
    """Return why this kind of end cannot be measured in a directory; empty when it can, which is tried."""
    if kind == FILE:
        return ""
    if os.geteuid() != 0:
        return "loop devices need root"
    if find_program("losetup") is None:
        return "losetup is missing (Debian package mount)"
    if not Path("/dev/loop-control").exists():
        return "there is no /dev/loop-control: the kernel has no loop devices, or this container may not use them"
    try:
        with fresh(directory / "trial", _TRIAL_BYTES) as backing, opened(kind, backing, read_only=False):
            return ""
    except EndsUnusable as exc:
        return str(exc)


@contextlib.contextmanager
def opened(kind: str, backing: Path, *, read_only: bool) -> Iterator[str]:
    """Give the path of the end over a file: the file itself, or a loop device that is detached afterwards.

    :raises EndsUnusable: when no loop device can be had, or not with direct I/O.
    """
    if kind == FILE:
        yield str(backing)
        return
    device = _attach(backing, read_only=read_only)
    try:
        if Path(f"/sys/block/{Path(device).name}/loop/dio").read_text(encoding="ascii").strip() != "1":
            raise EndsUnusable(f"{device}: the loop driver refuses direct I/O on this file system")
        yield device
    finally:
        _detach(device)


@contextlib.contextmanager
def fresh(path: Path, size_bytes: int) -> Iterator[Path]:
    """Give a new file that is one hole, and remove it afterwards."""
    with path.open("xb") as file:
        file.truncate(size_bytes)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _losetup(*arguments: str) -> str:
    program = find_program("losetup")
    if program is None:
        raise EndsUnusable("losetup is missing")
    # A group of its own, so that Ctrl-C cannot end it between attaching and telling the name.
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, process_group=0)
    if done.returncode != 0:
        raise EndsUnusable(f"losetup {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _attach(backing: Path, *, read_only: bool) -> str:
    return _losetup("--find", "--show", "--direct-io=on", *(["--read-only"] if read_only else []), str(backing))


def _detach(device: str) -> None:
    """Detach, and wait until it is gone: while somebody such as udev looks at it, the kernel only notes the wish."""
    _losetup("--detach", device)
    attached = Path(f"/sys/block/{Path(device).name}/loop/backing_file")
    deadline = time.monotonic() + _GONE_SECONDS
    while attached.exists():
        if time.monotonic() > deadline:
            raise EndsUnusable(f"{device} is still in use by somebody, {_GONE_SECONDS:.0f} s after it was detached")
        time.sleep(0.01)
