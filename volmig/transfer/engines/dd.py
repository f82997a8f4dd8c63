"""The engine that lets the program dd copy."""

from __future__ import annotations

import re
import shutil

from volmig import errors
from volmig.transfer.base import CopyJob, CopyOptions, End, EngineOutcome, TransferEngine
from volmig.transfer.ends.base import is_path, name_of
from volmig.transfer.engines import programs
from volmig.transfer.engines.process import TrackedProcess
from volmig.transfer.nbd.address import is_address

_PROGRAM = "dd"
_PACKAGE = "coreutils"
_OUTPUT_FD = 1  # dd opens its output file as its standard output
_COPIED = re.compile(r"^(\d+) bytes?\b.* copied", re.MULTILINE)


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
            position = programs.follow(job, process, _Account(process, job.size_bytes))
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
        f"if={programs.path_for_child(name_of(job.source))}",
        f"of={programs.path_for_child(name_of(job.destination))}",
        "bs=1M",
        f"count={job.size_bytes}",
        "iflag=count_bytes,fullblock",
        f"conv={','.join(conversions)}",
    ]


class _Account:
    """How far dd is: where it stands in its output file."""

    def __init__(self, process: TrackedProcess, size_bytes: int) -> None:
        self.position = 0
        self._process = process
        self._size = size_bytes

    def update(self) -> tuple[int, int]:
        # Before dd has opened its output, the descriptor is something else, at position 0.
        seen = min(self._process.position(_OUTPUT_FD) or 0, self._size)
        moved = max(0, seen - self.position)
        self.position += moved
        return moved, moved


def _bytes_copied(stderr: str) -> int:
    counts = _COPIED.findall(stderr)
    return int(counts[-1]) if counts else 0


def _failure(job: CopyJob, status: int | None, stderr: str, position: int) -> errors.VolmigError:
    """Return the error for what dd said when it failed: its first complaint, since others follow from that."""
    said = next((line for line in stderr.splitlines() if line.startswith("dd: ")), "")
    for name in (name_of(job.source), name_of(job.destination)):
        said = said.replace(f"'{programs.path_for_child(name)}'", f"'{name}'")
    return programs.failure(job, _PROGRAM, status, said, max(position, _bytes_copied(stderr)))
