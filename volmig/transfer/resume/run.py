"""Going on where an earlier run of a copy stopped."""

from __future__ import annotations

from collections.abc import Callable

from volmig import errors
from volmig.transfer.base import Checkpoint, CopyOptions, EndMark, TransferEngine, Verify
from volmig.transfer.digest import ALGORITHM, HASH_BYTES, segment_bytes
from volmig.transfer.ends.identity import FILE_VERSION, is_certain, outlasts_detaching


class Run:
    """One run of a copy: takes the checkpoint of the one before it, and makes its own.

    :param name: the source's, for messages.
    :param is_backed: whether the source can be written to behind its back; see :mod:`volmig.transfer.watch`.
    """

    def __init__(
        self,
        engine: TransferEngine,
        name: str,
        size_bytes: int,
        source: EndMark,
        destination: EndMark,
        options: CopyOptions,
        *,
        is_backed: bool = False,
    ) -> None:
        self._is_backed = is_backed
        self._engine = engine
        self._name = name
        self._size = size_bytes
        self._source = source
        self._destination = EndMark(identity=destination.identity, version=None)
        self._algorithm = "" if options.verify is Verify.NONE else ALGORITHM
        self._generation = 1

    def begin(self, checkpoint: Checkpoint | None) -> tuple[int, bytes]:
        """Return where to begin, and the digests of the segments before.

        :raises volmig.errors.CheckpointMismatch: when the checkpoint belongs to another copy.
        :raises volmig.errors.UnsupportedTransfer: when the engine cannot go on from one.
        """
        if checkpoint is None:
            return 0, b""
        if not self._engine.resumes:
            raise errors.UnsupportedTransfer(
                engine=self._engine.name,
                reason="it cannot go on from a checkpoint",
                hint="Start the copy afresh, without the checkpoint, or let the engine be chosen (auto).",
            )
        reason = self._mismatch(checkpoint)
        if reason:
            raise errors.CheckpointMismatch(path=f"for {self._name}", reason=reason)
        self._generation = checkpoint.generation + 1
        if self._algorithm and not checkpoint.digest_algorithm:
            # Of what the earlier run read there is no digest, so that nothing of it could be proved.
            return 0, b""
        if not self._is_source_known():
            return 0, b""
        if not self._algorithm:
            # Of the segments nothing is known, and nobody asks; but their number tells the position.
            return checkpoint.position_bytes, bytes(self._segments_before(checkpoint.position_bytes))
        return checkpoint.position_bytes, checkpoint.segments

    def reporter(self, on_checkpoint: Callable[[Checkpoint], None] | None) -> Callable[[int, bytes], None] | None:
        """Return what an engine is to call each time that more is on stable storage; None if nobody listens."""
        if on_checkpoint is None:
            return None

        def report(position_bytes: int, segments: bytes) -> None:
            on_checkpoint(
                Checkpoint(
                    size_bytes=self._size,
                    position_bytes=position_bytes,
                    generation=self._generation,
                    source=self._source,
                    destination=self._destination,
                    digest_algorithm=self._algorithm,
                    segments=segments if self._algorithm else b"",
                )
            )

        return report

    def _is_source_known(self) -> bool:
        """Say whether the source is still what the earlier run read, or the verification will find out."""
        # With digests, what the earlier run read is read again in doubt, and compared with them.
        return bool(self._algorithm) or (outlasts_detaching(self._source.version) and not self._is_backed)

    def _segments_before(self, position_bytes: int) -> int:
        return -(-position_bytes // segment_bytes(self._size)) * HASH_BYTES

    def _mismatch(self, checkpoint: Checkpoint) -> str:
        """Return why a checkpoint does not belong to this copy; empty when it does."""
        if checkpoint.size_bytes != self._size:
            return f"it is of a copy of {checkpoint.size_bytes} bytes, and this one is of {self._size}"
        if checkpoint.source.identity != self._source.identity or self._source.identity is None:
            return "it is of another source"
        if checkpoint.source.version != self._source.version:
            return _written_since(self._source.version)
        if checkpoint.destination.identity != self._destination.identity or self._destination.identity is None:
            return "it is of another destination"
        if not is_certain(self._destination.identity):
            return "nobody can tell whether the destination is still the device that it was"
        if checkpoint.digest_algorithm not in ("", ALGORITHM):
            return f"it has digests of another kind ({checkpoint.digest_algorithm})"
        position, segment = checkpoint.position_bytes, segment_bytes(self._size)
        if not 0 <= position <= self._size or (position % segment and position != self._size):
            return f"its position {position} is none at which a copy can go on"
        if checkpoint.digest_algorithm and len(checkpoint.segments) != self._segments_before(position):
            return "it has not as many digests as its position asks for"
        return ""


def _written_since(version: tuple[int, ...] | None) -> str:
    if version is not None and len(version) == FILE_VERSION:
        return "the source was written to since"
    return "the source was written to since, or was detached, or the machine restarted: nobody can tell"
