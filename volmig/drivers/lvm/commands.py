"""Running LVM's programs, and others that need root, without a shell and without leaving anything behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from volmig import errors

_GRACE_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.5
PROGRAM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs of administrators are, beside the directories of PATH."""
_LONGEST_REASON: Final = 500

# What LVM says when it could not get one of its own locks: those of files, and those that lvmlockd gets from others.
_LOCKED = re.compile(
    r"can't get lock|cannot (?:get|process|access) .*\block\b|failed to get .*\block\b|lock failed|can't lock"
    r"|failed to lock|could not lock|locked by other host|held by other host|resource temporarily unavailable",
    re.IGNORECASE,
)
_PREFIX_MISSES = re.compile(r"command not found|no such file or directory", re.IGNORECASE)

_PACKAGES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *("lvs", "vgs", "pvs", "lvm", "lvcreate", "lvremove", "lvextend", "lvrename", "lvchange", "lvconvert"),
            *("vgcreate", "vgremove", "vgchange", "vgextend", "pvcreate", "pvremove", "pvmove", "pvchange"),
        ),
        "lvm2",
    ),
    **dict.fromkeys(("blkdiscard", "ionice", "blockdev", "wipefs"), "util-linux"),
    **dict.fromkeys(("thin_check", "thin_dump", "thin_ls"), "thin-provisioning-tools"),
    "losetup": "mount",
    "dmsetup": "dmsetup",
    "udevadm": "udev",
    "dd": "coreutils",
    "modprobe": "kmod",
    "targetcli": "targetcli-fb",
    "iscsiadm": "open-iscsi",
    "nvme": "nvme-cli",
    "nbd-client": "nbd-client",
    "qemu-nbd": "qemu-utils",
}


class CommandFailed(Exception):
    """A program ended with an error. Drivers turn it into an error of volmig's that says what it means to them."""

    def __init__(self, command: Sequence[str], status: int, stderr: str) -> None:
        self.command = tuple(command)
        self.status = status
        self.stderr = stderr
        super().__init__(f"{command[0]} failed with status {status}: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.command, self.status, self.stderr)

    @property
    def reason(self) -> str:
        """What it said, in one line, without LVM's warnings when it said anything else."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if not line.startswith(("WARNING:", "File descriptor "))] or lines
        return "; ".join(telling)[:_LONGEST_REASON] or "it gave no reason"


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """How a program ended."""

    status: int
    stdout: bytes
    stderr: bytes


Runner = Callable[[Sequence[str], bytes | None], Completed]


class Commands:
    """Runs programs for one backend. Every argument is passed as it is: no shell ever sees one."""

    def __init__(
        self,
        *,
        backend: str = "lvm",
        prefix: Sequence[str] = (),
        lock_retries: int = 5,
        run: Runner | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Keep how programs are run.

        :param backend: name of the backend, for errors.
        :param prefix: a command that runs another as root, such as ``("sudo", "-n")``; empty when this process is root.
        :param lock_retries: how often a program is run again that could not get a lock of LVM's.
        :param run: starts a program and waits for its end; raises FileNotFoundError when it is not installed.
        """
        self._backend = backend
        self._prefix = tuple(prefix)
        self._lock_retries = lock_retries
        self._run = run or run_process
        self._pause = pause

    def run(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run a program to its end and return what it wrote to its standard output.

        :raises CommandFailed: when it ends with an error.
        :raises volmig.errors.StorageBusy: when LVM's own locks were held by somebody else all the time.
        :raises volmig.errors.ProgramMissing: when it is not installed.
        """
        attempt = 0
        while True:
            completed = self._once(arguments, stdin)
            if completed.status == 0:
                return completed.stdout.decode(errors="replace")
            failed = CommandFailed(arguments, completed.status, completed.stderr.decode(errors="replace"))
            if not _LOCKED.search(failed.stderr):
                raise failed
            if attempt >= self._lock_retries:
                raise errors.StorageBusy(backend=self._backend, reason=failed.reason) from failed
            attempt += 1
            self._pause(_RETRY_SECONDS)

    def _once(self, arguments: Sequence[str], stdin: bytes | None) -> Completed:
        try:
            completed = self._run([*self._prefix, *arguments], stdin)
        except FileNotFoundError as exc:
            raise missing_program(self._prefix[0] if self._prefix else arguments[0]) from exc
        said = completed.stderr.decode(errors="replace")
        if self._prefix and completed.status in {1, 127} and _says_missing(said, arguments[0]):
            raise missing_program(arguments[0])
        return completed

    def report(self, command: str, fields: Sequence[str], *arguments: str) -> list[dict[str, str]]:
        """Return the rows of one of LVM's reports, each with the fields asked for; sizes are bytes, without a unit.

        A field that this LVM leaves out of a row is empty. What LVM says beside, on its standard error, is not looked
        at. A field of segments, such as ``devices``, gives a row for each segment.

        :param command: ``lvs``, ``vgs`` or ``pvs``.
        :raises CommandFailed: when it fails, or its answer cannot be read.
        """
        line = [command, "--reportformat", "json", "--units", "b", "--nosuffix", "--noheadings"]
        line += ["-o", ",".join(fields), *arguments]
        answer = self.run(*line)
        try:
            rows = _rows(json.loads(answer))
        except (ValueError, TypeError, AttributeError) as exc:
            raise CommandFailed(line, 0, f"its report cannot be read: {answer[:200]!r}") from exc
        return [{field: _text(row.get(field)) for field in fields} for row in rows]


def _rows(answer: Any) -> list[dict[str, Any]]:
    """Return all rows, whatever LVM calls them: ``lv``, ``seg``, ``pvseg`` …"""
    rows: list[dict[str, Any]] = []
    for report in answer.get("report", ()):
        for name, part in report.items():
            if name != "log":
                rows += [dict(row) for row in part]
    return rows


def _text(value: object) -> str:
    """Return a field as text: an LVM that writes standard JSON gives numbers, lists and null."""
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def missing_program(program: str) -> errors.ProgramMissing:
    """Return the error of a program that is not installed, with the package that brings it."""
    package = _PACKAGES.get(program, program)
    return errors.ProgramMissing(
        program=program, package=package, hint=f"Install it (Debian package {package}), then repeat the request."
    )


def _says_missing(stderr: str, program: str) -> bool:
    return any(
        program in line and _PREFIX_MISSES.search(line)
        for line in stderr.splitlines()
        if line.lstrip().startswith(("sudo:", "env:", "doas:", "nice:", "ionice:"))
    )


def run_process(command: Sequence[str], stdin: bytes | None) -> Completed:
    """Run a program in a process group of its own, with nothing of this process's but its environment.

    When the caller is interrupted the group is asked to end, and killed when it does not: LVM ends only where it
    leaves no device suspended. A program run by sudo belongs to root and cannot be signalled; its end is awaited.

    :raises FileNotFoundError: when there is no such program.
    """
    environment = {name: value for name, value in os.environ.items() if name != "LANGUAGE"}
    environment |= {"LC_ALL": "C", "PATH": f"{environment.get('PATH', '/usr/bin:/bin')}:{PROGRAM_PATH}"}
    with subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin)
        except BaseException:
            _end(process)
            raise
    return Completed(status=process.returncode, stdout=stdout, stderr=stderr)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
