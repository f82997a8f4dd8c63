"""Finding out what a device holds, by the signatures that blkid knows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass

from volmig import errors

_PROGRAM = "blkid"
_PACKAGE = "util-linux"
_TIMEOUT_SECONDS = 30.0
_FOUND, _NOT_FOUND, _AMBIVALENT = 0, 2, 8
"""Exit statuses, from blkid(8)."""
_NO_SIGNATURE = frozenset({"DEVNAME", "BLOCK_SIZE"})
_TRIED_BYTES = 64 * 1024
_USAGES = {
    "filesystem": "a file system",
    "raid": "a member of a RAID or volume group",
    "crypto": "an encrypted volume",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a device was recognised as."""

    tags: frozenset[tuple[str, str]]
    """What blkid told, such as ``("TYPE", "ext4")``; empty when it found signatures that contradict each other."""

    def __str__(self) -> str:
        told = dict(self.tags)
        if not told:
            return "several signatures that contradict each other"
        found = []
        if "TYPE" in told:
            label = f", label {told['LABEL']!r}" if told.get("LABEL") else ""
            found.append(f"{_USAGES.get(told.get('USAGE', ''), 'data')} ({told['TYPE']}{label})")
        if "PTTYPE" in told:
            found.append(f"a partition table ({told['PTTYPE']})")
        return " and ".join(found) or "a signature"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How a program ended."""

    status: int
    output: str
    complaint: str


def signature_of(fd: int, path: str, probe: Callable[[int], Answer] | None = None) -> Signature | None:
    """Return what an open file or device is recognised as; None when it holds nothing that is known.

    Only reads, and asks no cache.

    :param path: what to call it in messages.
    :raises volmig.errors.ProgramMissing: when blkid is not installed.
    :raises volmig.errors.TransferFailed: when it cannot be found out, since reading fails, say.
    """
    size_bytes = os.lseek(fd, 0, os.SEEK_END)
    try:
        # blkid takes what it cannot read for empty.
        for offset in (0, max(0, size_bytes - _TRIED_BYTES)):
            os.pread(fd, _TRIED_BYTES, offset)
    except OSError as exc:
        raise _failure(path, f"reading: {exc.strerror}") from exc
    answer = (probe or _blkid)(fd)
    tags = _tags(answer.output)
    if answer.status == _AMBIVALENT:
        return Signature(tags=frozenset())
    if answer.status == _FOUND:
        return Signature(tags=tags) if tags else None
    if answer.status == _NOT_FOUND and not tags and not answer.complaint:
        return None
    told = answer.complaint.splitlines()[-1] if answer.complaint else f"{_PROGRAM} ended with status {answer.status}"
    raise _failure(path, told)


def _failure(path: str, reason: str) -> errors.TransferFailed:
    return errors.TransferFailed(
        path=path,
        offset=0,
        reason=f"finding out what is on it: {reason}",
        hint="Nothing was written. Check that storage and its logs.",
    )


def _tags(output: str) -> frozenset[tuple[str, str]]:
    """Return the tags of blkid's format ``export``, which puts a backslash before some characters."""
    pairs = (line.partition("=") for line in output.splitlines())
    return frozenset(
        (name, re.sub(r"\\(.)", r"\1", value))
        for name, separator, value in pairs
        if separator and name not in _NO_SIGNATURE and not name.startswith("PART_ENTRY_")
    )


def _blkid(fd: int) -> Answer:
    # It is not in the PATH of every user.
    program = shutil.which(_PROGRAM) or shutil.which(_PROGRAM, path="/usr/sbin:/sbin")
    if program is None:
        raise errors.ProgramMissing(
            program=_PROGRAM,
            package=_PACKAGE,
            hint=f"Install it (Debian package {_PACKAGE}): it tells what would be overwritten.",
        )
    arguments = [program, "--probe", "--no-part-details", "--output", "export", f"/proc/self/fd/{fd}"]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"LC_ALL": "C", "PATH": os.defpath},
        pass_fds=(fd,),
        text=True,
        errors="replace",
    )
    try:
        output, complaint = process.communicate(timeout=_TIMEOUT_SECONDS)
    except BaseException as exc:
        process.kill()
        _reap(process)
        if isinstance(exc, subprocess.TimeoutExpired):
            return Answer(status=-1, output="", complaint=f"no answer within {_TIMEOUT_SECONDS:g} seconds")
        raise
    return Answer(status=process.returncode, output=output, complaint=complaint.strip())


def _reap(process: subprocess.Popen[str]) -> None:
    """See a killed program off; one that hangs in the kernel is left to a thread."""
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
        return
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
