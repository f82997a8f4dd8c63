"""The engine that lets the program qemu-img copy, from format to format."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass

from volmig import errors
from volmig.transfer.base import CopyJob, CopyOptions, End, EngineOutcome, TransferEngine
from volmig.transfer.ends.base import is_path, name_of
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.engines import programs
from volmig.transfer.engines.process import TrackedProcess
from volmig.transfer.images.chains import FORMATS, RAW, Chain, open_chain
from volmig.transfer.images.headers import HEAD_BYTES, probe
from volmig.transfer.nbd.address import is_address

PROGRAM = "qemu-img"
PACKAGE = "qemu-utils"
_SECTOR_BYTES = 512
_REQUESTS = 16
_PERCENT = re.compile(r"\((\d+(?:\.\d+)?)/100%\)")


class QemuImgEngine(TransferEngine):
    """Copies paths from format to format with qemu-img: raw, qcow2, vmdk, vdi and vhdx.

    Nothing is probed, and no file is opened but those that :func:`volmig.transfer.images.chains.open_chain` allows: all
    are handed over as open descriptors. A source that is based on others is flattened.

    A raw destination must exist and have room; its part behind the copy is kept. A destination of another format
    must be a regular file that is empty, without data, or already an image of that format: that image is **replaced**
    by a new one, in the same file, that stands alone and whose content has the size of the copy, rounded up to a
    sector of 512 bytes. Sizes that are not whole sectors can only come from a raw source, whole, and not go to a raw
    destination.

    It reads past the cache, where the source can do that, and writes through it, 16 requests at once and out of order,
    which measured best. A limit is kept by stopping the program for moments: to some 2 MiB when the copy starts with
    one, in which case it makes one request at a time and writes past the cache, too; to some 32 MiB and what the
    cache takes at once when it is set later. It gives no digest: for a verification the source is read once more.
    """

    name = "qemu-img"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        for end in (source, destination):
            if not is_path(end):
                return "qemu-img copies paths only, and an end is a file-like handle"
            if is_address(end):
                return "qemu-img copies paths only here, and an end is an NBD address"
        for format_name in (options.source_format, options.destination_format):
            if format_name not in FORMATS:
                return f"the format {format_name!r} is none of {', '.join(sorted(FORMATS))}"
        if shutil.which(PROGRAM) is None:
            raise errors.ProgramMissing(program=PROGRAM, package=PACKAGE)
        return ""

    def run(self, job: CopyJob) -> EngineOutcome:
        job.control.check()
        options = job.options
        with open_chain(name_of(job.source), options.source_format, options) as chain:
            _check_size(job, chain)
            raw = options.destination_format == RAW
            if raw and not job.size_bytes:
                return EngineOutcome(bytes_copied=0, bytes_zero=0)
            with FileEnd(name_of(job.destination), os.O_RDWR, is_destination=True) as destination:
                if not raw:
                    _create(job, destination)
                means = _convert(job, chain, destination)
                job.flushing()
                try:
                    destination.flush()
                except OSError as exc:
                    reason = f"flushing: {exc.strerror}"
                    raise errors.TransferFailed(path=destination.name, offset=0, reason=reason) from exc
                destination.drop_cache()
        return EngineOutcome(bytes_copied=job.size_bytes, bytes_zero=0, means=means)


def _check_size(job: CopyJob, chain: Chain) -> None:
    if not job.size_bytes % _SECTOR_BYTES:
        return
    whole = chain.files[0].format == RAW and chain.files[0].end.size_bytes == job.size_bytes
    if job.options.destination_format == RAW or not whole:
        raise errors.UnsupportedTransfer(
            engine=PROGRAM,
            reason=f"it copies whole sectors of {_SECTOR_BYTES} bytes, and {job.size_bytes} bytes are not",
        )


def _create(job: CopyJob, destination: FileEnd) -> None:
    """Make the destination an empty image."""
    format_name = job.options.destination_format
    _check_replaceable(destination, format_name)
    sectors = -(-job.size_bytes // _SECTOR_BYTES)
    # By the descriptor: whatever takes the path's place meanwhile is not touched.
    place = f"/proc/self/fd/{destination.buffered}"
    arguments = [PROGRAM, "create", "-q", "-f", format_name, place, str(sectors * _SECTOR_BYTES)]
    with TrackedProcess(arguments, package=PACKAGE, descriptors=[destination.buffered]) as process:
        programs.run_quietly(job, process, lambda text: text.replace(place, destination.name))


def _check_replaceable(end: FileEnd, format_name: str) -> None:
    """Check that a file may become an image: that nothing else is in it."""
    if not end.is_regular:
        raise errors.UnsupportedTransfer(
            engine=PROGRAM,
            reason=f"{end.name} is a block device, and images of the format {format_name!r} are made in files only",
        )
    if next(end.extents(end.size_bytes), None) is None:
        return
    head = bytearray(min(HEAD_BYTES, end.size_bytes))
    end.read_some(memoryview(head), 0)
    carried = probe(bytes(head))
    if carried != format_name:
        raise errors.UnsupportedFormat(
            what=end.name,
            format=format_name,
            reason=f"an image is to replace it, and it holds {f'a {carried} image' if carried else 'other data'}",
            hint="Name an empty file, or an image of that format that is not needed any more.",
        )


def _convert(job: CopyJob, chain: Chain, destination: FileEnd) -> str:
    """Let the program copy; return how it does it."""
    # Under a limit the program is to move little between two looks at how much it has moved.
    limited = bool(job.control.limit_bytes)
    how = _How(
        requests=1 if limited else _REQUESTS,
        reads_direct=chain.direct,
        writes_direct=limited and destination.direct is not None,
    )
    process = TrackedProcess(
        _arguments(job, chain, destination, how),
        package=PACKAGE,
        descriptors=[*chain.descriptors, destination.buffered],
        keeps_output=True,
    )
    with process:
        job.on_process(process.helper)
        job.control.check()
        process.begin()
        position = programs.follow(job, process, programs.PercentAccount(process, job.size_bytes, _PERCENT))
        status = process.wait(0)
        if status:
            said = chain.told(process.stderr())
            said = said.replace(f"/proc/self/fd/{destination.buffered}", destination.name)
            raise programs.failure(job, PROGRAM, status, said, position)
    job.advance(job.size_bytes - position, 0)
    return str(how)


@dataclass(frozen=True, kw_only=True, slots=True)
class _How:
    """How the program is to copy."""

    requests: int
    reads_direct: bool
    writes_direct: bool

    def __str__(self) -> str:
        count = "one request at a time" if self.requests == 1 else f"{self.requests} requests at once"
        reads, writes = ("past" if direct else "through" for direct in (self.reads_direct, self.writes_direct))
        return f"qemu-img convert, {count}, reading {reads} the cache, writing {writes} it"

    @property
    def arguments(self) -> list[str]:
        """The same for the program."""
        reads, writes = ("none" if direct else "writeback" for direct in (self.reads_direct, self.writes_direct))
        return [*(["-W"] if self.requests > 1 else []), "-m", str(self.requests), "-t", writes, "-T", reads]


def _arguments(job: CopyJob, chain: Chain, destination: FileEnd, how: _How) -> list[str]:
    raw = job.options.destination_format == RAW
    driver = "file" if destination.is_regular else "host_device"
    target = [
        f"driver={job.options.destination_format}",
        # So that the program sees no more of a larger destination than it may write.
        *([f"size={job.size_bytes}"] if raw else []),
        f"file.driver={driver}",
        f"file.filename=/proc/self/fd/{destination.buffered}",
    ]
    # The image was made a moment ago, and has nothing in it.
    zero = job.options.destination_is_zero or not raw
    return [
        PROGRAM,
        "convert",
        "-p",
        "-n",
        *(["--target-is-zero"] if zero else []),
        *how.arguments,
        "--target-image-opts",
        chain.address(None if job.size_bytes % _SECTOR_BYTES else job.size_bytes),
        ",".join(target),
    ]
