"""What a copy is asked for, what it reports, and what an engine must do.

An *end* of a copy is a path (a block device or a regular file), an NBD address (``nbd://host[:port][/export]`` or
``nbd+unix:///[export]?socket=path``) or a file-like handle. Engines are entry points in the namespace
``volmig.transfer_engines``; :func:`volmig.transfer.copy` chooses one, runs it and verifies its work.
"""

from __future__ import annotations

import abc
import enum
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, ClassVar, TypeAlias, TypeVar

from volmig import errors

if TYPE_CHECKING:
    from volmig.transfer.control import Control

End: TypeAlias = "str | os.PathLike[str] | BinaryIO"

INTERFACE_VERSION = (1, 0)


class Verify(enum.StrEnum):
    """How the arrived data is compared with what left."""

    NONE = "none"
    """Not at all."""
    DIGEST = "digest"
    """The destination is read back past the cache, and its digest compared with that of what was read."""
    COMPARE = "compare"
    """Both ends are read again and compared byte for byte; the digests are reported too."""


class CopyStage(enum.StrEnum):
    """What a copy is doing."""

    COPY = "copy"
    FLUSH = "flush"
    VERIFY = "verify"


class Tail(enum.StrEnum):
    """What becomes of the part of a larger destination that lies behind the copy."""

    KEEP = "keep"
    """It is not touched."""
    ZERO = "zero"
    """It reads as zeroes afterwards."""


_Choice = TypeVar("_Choice", bound=enum.StrEnum)


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyOptions:
    """How to copy. What is a choice (:attr:`verify`, :attr:`tail`) may be given as its string, too.

    :raises volmig.errors.RequestInvalid: when there is no such choice.
    """

    engine: str = "auto"
    """Name of an engine, or ``auto``: the best that can serve the ends."""
    verify: Verify = Verify.DIGEST
    source_format: str = "raw"
    """Data format of the source, such as ``raw`` or ``qcow2``; never guessed from the data. A source that begins like
    an image of another format is refused, since whoever may write to a volume can make it look like that."""
    destination_format: str = "raw"
    """Data format that the destination is to have. An engine that cannot translate refuses two that differ."""
    destination_is_zero: bool = False
    """The destination is known to read as zeroes everywhere, so that zeroes need not be written to it."""
    bandwidth_limit_bytes: int = 0
    """Bytes a second at most, while copying and while verifying; 0 for no limit. It can be changed on the running
    copy through its control."""
    chunk_bytes: int = 1024 * 1024
    """Largest size of one request: 4 KiB to 1 MiB, in steps of 4 KiB."""
    tail: Tail = Tail.KEEP
    ignore_header: bool = False
    """Do not look whether a source that is said to be ``raw`` begins like an image of another format."""
    backing_directories: tuple[str, ...] = ()
    """Directories, beside the image's own, in which the backing files of a source image may lie."""

    def __post_init__(self) -> None:
        # A string that is left as it is would be none of the members that the copy asks for.
        object.__setattr__(self, "verify", _chosen(Verify, self.verify, "verify"))
        object.__setattr__(self, "tail", _chosen(Tail, self.tail, "tail"))


def _chosen(choices: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return choices(value)
    except ValueError as exc:
        known = ", ".join(repr(str(choice)) for choice in choices)
        raise errors.RequestInvalid(what=what, reason=f"{value!r} is none of {known}") from exc


@dataclass(frozen=True, kw_only=True, slots=True)
class EndMark:
    """What tells an end from another, and from itself after somebody wrote to it."""

    identity: tuple[str, ...] | None
    """Kind, and what the system tells it from others by; None for a handle without a file behind it."""
    version: tuple[int, ...] | None
    """What changes when somebody writes to it. Of a regular file: size in bytes, time of modification and time of
    status change (``ctime``) in ns. Of a block device: the writes and discards that the kernel has counted on it, and
    the sectors of each; then, where the kernel has them, the number of its attachment and of the system's start,
    without which the counters mean nothing once it was detached. None for what tells nothing: other handles, NBD."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What of a copy was finished and flushed, so that another run can go on from there."""

    size_bytes: int
    """Size of the copy that it belongs to."""
    position_bytes: int
    """Everything before this is on stable storage at the destination; it is where a segment of the digest ends."""
    generation: int
    """Counts the runs of one copy; a run writes checkpoints of a higher generation than the one it went on from."""
    source: EndMark
    """The source as it was before the first run."""
    destination: EndMark
    """The destination; its version is not recorded."""
    digest_algorithm: str
    """Name of the digest of what was read; empty when none was computed (``verify=none``)."""
    segments: bytes = field(repr=False)
    """Digests of the finished segments of the source, one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferProgress:
    """How far a copy is; given to the progress callback a few times a second."""

    stage: CopyStage
    bytes_total: int
    """Bytes that this stage deals with in all."""
    bytes_done: int
    """Bytes dealt with: copied, or known to be zeroes and passed over."""
    bytes_skipped: int
    """The part of ``bytes_done`` that was passed over as holes or zeroes."""
    rate_bytes: float
    """Bytes dealt with per second, over the last few seconds."""
    eta_seconds: float | None
    """Seconds to the end of the stage at the present rate, judged by the data that is left and not by holes;
    None while unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HelperProcess:
    """A program that an engine started; enough to find and stop it after a crash."""

    pid: int
    """Its process id, which is also that of its process group."""
    start_time_ticks: int
    """Its start time as in ``/proc/<pid>/stat``, so that another process with the same id is not mistaken for it."""
    program: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CopiedData:
    """What :func:`volmig.transfer.copy_data` did, and what :func:`volmig.transfer.verify_copy` needs to know of it."""

    engine: str
    engine_reason: str
    """Why that engine was used."""
    bytes_copied: int
    """As in :class:`TransferResult`; without what an earlier run had copied."""
    bytes_zero: int
    seconds: float
    """Time of copying and flushing."""
    source_digest: str
    """Digest of what was read, in hexadecimal; empty when the engine gave none."""
    source_segments: bytes = field(repr=False)
    """The digests of the segments that it is made of; see :mod:`volmig.transfer.digest`."""
    source_mark: EndMark
    """The source as it was before and after the copy."""
    backing_mark: EndMark | None = None
    """So of what the source is an export of; None when that was not given."""
    means: str = ""
    """How the engine did it: the kind of requests, how many at once, past the cache or through it, in words."""
    bytes_resumed: int = 0
    """Bytes from the beginning that an earlier run had finished, and that were not copied again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedData:
    """What :func:`volmig.transfer.verify_copy` found."""

    digest_algorithm: str = ""
    """Name of the digest; empty with ``verify=none``, and so are the digests."""
    source_digest: str = ""
    destination_digest: str = ""
    seconds: float = 0.0
    source_mark: EndMark | None = None
    """The source as it was before and after the verification; None with ``verify=none``."""
    backing_mark: EndMark | None = None
    """So of what the source is an export of; None when that was not given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferResult:
    """What a copy did."""

    engine: str
    engine_reason: str
    """Why that engine was used."""
    bytes_total: int
    bytes_copied: int
    """Bytes that were data in the source, without what an earlier run had copied; with an engine that does not look
    (``dd``) all of them."""
    bytes_zero: int
    """Bytes that were holes or zeroes in the source."""
    copy_seconds: float
    """Time of copying and flushing."""
    verify_seconds: float
    verify: Verify
    digest_algorithm: str
    """Name of the digest, or empty with ``verify=none``."""
    source_digest: str
    """Digest of what was read from the source, in hexadecimal."""
    destination_digest: str
    """Digest of what was read back from the destination; equal to the other, or the copy had failed."""
    means: str = ""
    """As in :class:`CopiedData`."""
    bytes_resumed: int = 0
    """As in :class:`CopiedData`."""


def _unwatched(*_: int) -> None:
    """Do nothing: nobody wants to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyJob:
    """One copy, as an engine sees it."""

    source: End
    destination: End
    size_bytes: int
    options: CopyOptions
    control: Control
    advance: Callable[[int, int], None]
    """Called with (bytes dealt with, bytes of these passed over) since the last call."""
    on_process: Callable[[HelperProcess], None]
    """Called with each program that is started, before it can have written anything that matters."""
    expect: Callable[[int], None] = _unwatched
    """Called at the start with the bytes that must really be moved, when the engine knows; the time to the end is
    judged by them. Without a call it is judged by ``size_bytes``."""
    flushing: Callable[[], None] = _unwatched
    """Called when everything is written and the flush begins."""
    begin_bytes: int = 0
    """Where to begin: what is before it, an earlier run has finished. Other than 0 only for engines that resume."""
    begin_segments: bytes = b""
    """Digests of the segments before ``begin_bytes``."""
    finished: Callable[[int, bytes], None] | None = None
    """To be called, by engines that resume, each time that more is on stable storage: with the position before which
    all is, and the digests of the segments up to there. None when nobody wants to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOutcome:
    """What an engine did."""

    bytes_copied: int
    bytes_zero: int
    source_digest: str = ""
    """Digest of what was read, when the engine saw the data itself; else it is computed by reading again."""
    source_segments: bytes = b""
    """The digests of the segments that it is made of (:mod:`volmig.transfer.digest`), which tell where a difference
    is. A digest that comes without them is not used: the source is read again."""
    means: str = ""
    """As in :class:`CopiedData`."""


class TransferEngine(abc.ABC):
    """Moves the bytes of one copy."""

    interface_version: ClassVar[tuple[int, int]] = INTERFACE_VERSION
    name: ClassVar[str]
    resumes: ClassVar[bool] = False
    """Whether it can go on from a checkpoint, and reports what it needs for one."""

    @abc.abstractmethod
    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        """Return why this engine cannot serve such a copy; empty when it can.

        :raises volmig.errors.ProgramMissing: when a program that it needs is not installed.
        """

    @abc.abstractmethod
    def run(self, job: CopyJob) -> EngineOutcome:
        """Copy ``job.size_bytes`` bytes and flush the destination to stable storage.

        :raises volmig.errors.TransferCancelled: soon after ``job.control`` was cancelled.
        :raises volmig.errors.OperatorError: when an end fails, is too short, or full.
        """
