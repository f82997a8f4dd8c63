"""The engine that lets the program nbdcopy copy to and from NBD servers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator

from volmig import errors
from volmig.transfer.base import CopyJob, CopyOptions, End, EngineOutcome, TransferEngine
from volmig.transfer.ends.base import OpenEnd, is_path, name_of
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.engines import programs
from volmig.transfer.engines.process import TrackedProcess
from volmig.transfer.flow.lookup import Lookup, looking
from volmig.transfer.images.chains import RAW
from volmig.transfer.nbd.address import is_address, parse

PROGRAM = "nbdcopy"
PACKAGE = "libnbd-bin"
_PERCENT = re.compile(r"^(\d+)/100$", re.MULTILINE)


class NbdcopyEngine(TransferEngine):
    """Copies raw data with nbdcopy, where an end is an NBD address, or where it was asked for by name.

    nbdcopy copies a source from its beginning to its end, and cuts a regular file to the size of that: so a source
    that is larger than the copy, and a regular file as a destination that is, are refused. What is behind the copy on a
    larger device or export is kept. A copy that starts with a limit is refused; one that is set while it runs is
    kept on average, by stopping the program for moments. It gives no digest: for a verification the source is
    read once more.
    """

    name = "nbdcopy"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        if not is_path(source) or not is_path(destination):
            return "nbdcopy copies paths and NBD addresses, and an end is a file-like handle"
        if options.source_format != RAW or options.destination_format != RAW:
            return "nbdcopy copies bytes as they are, and an end is not raw"
        addresses = [name_of(end) for end in (source, destination) if is_address(end)]
        if not addresses and options.engine == "auto":
            return "no end is an NBD address"
        if options.bandwidth_limit_bytes:
            return "nbdcopy cannot keep a bandwidth limit"
        for address in addresses:
            parse(address)
        if shutil.which(PROGRAM) is None:
            raise errors.ProgramMissing(program=PROGRAM, package=PACKAGE)
        return ""

    def run(self, job: CopyJob) -> EngineOutcome:
        job.control.check()
        with looking(job.control) as lookup:
            _check_ends(job, lookup)
        if not job.size_bytes:
            return EngineOutcome(bytes_copied=0, bytes_zero=0)
        with TrackedProcess(_arguments(job), package=PACKAGE, keeps_output=True) as process:
            job.on_process(process.helper)
            job.control.check()
            process.begin()
            position = programs.follow(job, process, programs.PercentAccount(process, job.size_bytes, _PERCENT))
            status = process.wait(0)
            if status:
                raise programs.failure(job, PROGRAM, status, process.stderr(), position)
        job.advance(job.size_bytes - position, 0)
        job.flushing()
        with (
            looking(job.control) as lookup,
            _opened(job.destination, lookup, writes=True) as destination,
            _flushing(destination),
        ):
            lookup.ask(destination, destination.flush, "the flush")
        return EngineOutcome(bytes_copied=job.size_bytes, bytes_zero=0, means="nbdcopy, through the cache")


def _arguments(job: CopyJob) -> list[str]:
    return [
        PROGRAM,
        "--flush",
        "--progress=1",
        *(["--destination-is-zero"] if job.options.destination_is_zero else []),
        "--",
        _for_child(job.source),
        _for_child(job.destination),
    ]


def _for_child(end: End) -> str:
    name = name_of(end)
    return parse(name).uri if is_address(end) else programs.path_for_child(name)


def _check_ends(job: CopyJob, lookup: Lookup) -> None:
    """Check that nbdcopy does with these ends what is wanted, and not more."""
    with (
        _opened(job.source, lookup, writes=False) as source,
        _opened(job.destination, lookup, writes=True) as destination,
    ):
        if source.size_bytes < job.size_bytes:
            raise errors.SourceTooShort(path=source.name, actual=source.size_bytes, expected=job.size_bytes)
        if destination.size_bytes < job.size_bytes:
            raise errors.DestinationTooShort(
                path=destination.name, actual=destination.size_bytes, expected=job.size_bytes
            )
        if source.size_bytes > job.size_bytes:
            raise errors.UnsupportedTransfer(
                engine=PROGRAM,
                reason=f"it copies a source to its end, and {source.name} has {source.size_bytes} bytes, "
                f"of which {job.size_bytes} are wanted",
            )
        is_file = isinstance(destination, FileEnd) and destination.is_regular
        if is_file and destination.size_bytes > job.size_bytes:
            raise errors.UnsupportedTransfer(
                engine=PROGRAM,
                reason=f"it would cut {destination.name} from {destination.size_bytes} to {job.size_bytes} bytes",
            )


def _opened(end: End, lookup: Lookup, *, writes: bool) -> OpenEnd:
    def work() -> OpenEnd:
        if is_address(end):
            # Here, so that who only asks which engines there are need not load sockets.
            from volmig.transfer.nbd.end import NbdEnd

            return NbdEnd.connect(end, reads=not writes, writes=writes, is_destination=writes, most_connections=1)
        return FileEnd(name_of(end), os.O_WRONLY if writes else os.O_RDONLY, is_destination=writes)

    return lookup.open(name_of(end), work)


@contextlib.contextmanager
def _flushing(end: OpenEnd) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise errors.TransferFailed(path=end.name, offset=0, reason=f"flushing: {exc.strerror or exc}") from exc
