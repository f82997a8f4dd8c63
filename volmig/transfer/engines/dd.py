"""The engine that lets the program dd copy."""

from __future__ import annotations

import os
import re
import shutil
import signal

from volmig import errors
from volmig.transfer.base import CopyJob, CopyOptions, End, EngineOutcome, TransferEngine
from volmig.transfer.ends.base import is_path, name_of
from volmig.transfer.engines.process import TrackedProcess
from volmig.transfer.nbd.address import is_address

_PROGRAM = "dd"
_PACKAGE = "coreutils"
_OUTPUT_FD = 1  # dd opens its output file as its standard output
_POLL_SECONDS = 0.05
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_COPIED = re.compile(r"^(\d+) bytes?\b.* copied", re.MULTILINE)
_OWN_DESCRIPTOR = re.compile(r"/+(?:proc/+self|proc/+thread-self|dev)/+fd/+(\d+)")


class DdEngine(TransferEngine):
    """Copies paths with GNU dd.

    dd reads and writes everything, holes too; only where the destination is known to read as zeroes it passes over
    blocks of 1 MiB that are all zero. It gives no digest: for a verification the source is read once more. It can
    be paused at once, but it moves in bursts: a limit that is set while it runs is kept on average only, and a copy
    that starts with a limit is refused. A deadline is seen within 0.05 s; dd goes on writing while this process
    alone is stopped, until it runs again.
    """

    name = "dd"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        if not is_path(source) or not is_path(destination):
            return "dd copies paths only, and an end is a file-like handle"
        if is_address(source) or is_address(destination):
            return "dd copies paths only, and an end is an NBD address"
        if options.bandwidth_limit_bytes:
            return "dd cannot keep a bandwidth limit"
        if options.source_format != "raw" or options.destination_format != "raw":
            return (
                "dd copies bytes as they are, and does not turn the format "
                f"{options.source_format!r} into {options.destination_format!r}"
            )
        if shutil.which(_PROGRAM) is None:
            raise errors.ProgramMissing(program=_PROGRAM, package=_PACKAGE)
        return ""

    def run(self, job: CopyJob) -> EngineOutcome:
        job.control.check()
        with TrackedProcess(_arguments(job), package=_PACKAGE) as process:
            job.on_process(process.helper)
            job.control.check()
            process.begin()
            position = _follow(job, process)
            status = process.wait(0)
            stderr = process.stderr()
        if status != 0 or re.search(r"^dd: ", stderr, re.MULTILINE):
            raise _failure(job, status, stderr, position)
        copied = _bytes_copied(stderr)
        if copied < job.size_bytes:
            raise errors.SourceTooShort(path=name_of(job.source), actual=copied, expected=job.size_bytes)
        job.advance(job.size_bytes - position, 0)
        return EngineOutcome(bytes_copied=job.size_bytes, bytes_zero=0)


def _arguments(job: CopyJob) -> list[str]:
    # nocreat: the destination was there when it was checked, and a new file in its place would be a mistake.
    conversions = ["notrunc", "nocreat", "fsync", *(["sparse"] if job.options.destination_is_zero else [])]
    return [
        _PROGRAM,
        f"if={_path_for_child(name_of(job.source))}",
        f"of={_path_for_child(name_of(job.destination))}",
        "bs=1M",
        f"count={job.size_bytes}",
        "iflag=count_bytes,fullblock",
        f"conv={','.join(conversions)}",
    ]


def _path_for_child(path: str) -> str:
    """Return a path by which another process finds what this process finds under *path*."""
    match = _OWN_DESCRIPTOR.fullmatch(path)
    return f"/proc/{os.getpid()}/fd/{match[1]}" if match else path


def _follow(job: CopyJob, process: TrackedProcess) -> int:
    """Steer dd and report its progress until it ends; return how far it was seen to be."""
    position = 0
    flushing = False
    while process.wait(_POLL_SECONDS) is None:
        if job.control.expired:
            process.kill()
        if job.control.cancelled:
            raise job.control.cancellation()
        seen = process.position(_OUTPUT_FD)
        # Before dd has opened its output, the descriptor is something else, at position 0.
        moved = max(0, min(seen or 0, job.size_bytes) - position)
        position += moved
        job.advance(moved, 0)
        if job.control.charge(moved) > 0 or job.control.paused:
            process.hold()
        else:
            process.go_on()
        if position == job.size_bytes and not flushing:
            flushing = True
            job.flushing()
    return position


def _bytes_copied(stderr: str) -> int:
    counts = _COPIED.findall(stderr)
    return int(counts[-1]) if counts else 0


def _failure(job: CopyJob, status: int | None, stderr: str, position: int) -> errors.VolmigError:
    """Return the error for what dd said when it failed."""
    complaints = [line.removeprefix("dd: ") for line in stderr.splitlines() if line.startswith("dd: ")]
    text = (
        complaints[0] if complaints else f"dd ended with {_status_text(status)}: {stderr.strip()[-200:] or 'no word'}"
    )
    source, destination = name_of(job.source), name_of(job.destination)
    offset = max(position, _bytes_copied(stderr))
    if text.endswith(_FULL) or status == -signal.SIGXFSZ:
        return errors.DiskFull(path=destination, offset=offset)
    opens_source = text.startswith(f"failed to open '{_path_for_child(source)}'")
    reads = opens_source or text.startswith("error reading")
    return errors.TransferFailed(path=source if reads else destination, offset=offset, reason=text)


def _status_text(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {-status}"
    return f"status {status}"
