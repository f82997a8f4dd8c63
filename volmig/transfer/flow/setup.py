"""Choosing how requests are made, and how many at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from volmig.transfer.control import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.flow.arena import BUFFER_BYTES, Arena
from volmig.transfer.flow.pump import Pump
from volmig.transfer.flow.request import RequestQueue
from volmig.transfer.flow.ring import RingQueue, RingUnavailable
from volmig.transfer.flow.threads import ThreadQueue

_BUFFERS = 64
_REQUESTS = 64
_BYTES = 16 * BUFFER_BYTES


@dataclass(frozen=True, kw_only=True)
class Machinery:
    """What moves bytes."""

    arena: Arena
    pump: Pump
    queue_means: str
    ends: Sequence[OpenEnd]

    @property
    def means(self) -> str:
        """What it is, in words; after the work, since an end may turn out to have no way past the cache."""
        return "; ".join([self.queue_means, *map(_path_of, self.ends)])


@contextlib.contextmanager
def machinery(ends: Sequence[OpenEnd], size_bytes: int, control: Control, *, buffers: int = 1) -> Iterator[Machinery]:
    """Set up what moves bytes between or from *ends*, and let go of it afterwards.

    Memory: 65 MiB; less for a volume that is smaller.
    """
    arena = Arena(max(buffers, min(_BUFFERS, -(-size_bytes // BUFFER_BYTES) * buffers)))
    queue, means = _queue(arena, ends, control)
    try:
        pump = Pump(queue, arena, control, requests_in_flight=_REQUESTS, bytes_in_flight=_BYTES)
        yield Machinery(arena=arena, pump=pump, queue_means=means, ends=ends)
    finally:
        is_idle = not queue.in_flight
        queue.close()
        if is_idle:
            arena.give_back()


def _queue(arena: Arena, ends: Sequence[OpenEnd], control: Control) -> tuple[RequestQueue, str]:
    """Return a queue that serves all ends, and what to say of it."""
    if not all(isinstance(end, FileEnd) for end in ends):
        return ThreadQueue(arena, ends, control), "threads"
    try:
        return RingQueue(arena, _REQUESTS, control), "io_uring"
    except RingUnavailable as exc:
        return ThreadQueue(arena, ends, control), f"threads, since {exc}"


def _path_of(end: OpenEnd) -> str:
    which = "destination" if end.is_destination else "source"
    if not isinstance(end, FileEnd):
        return f"{which} through its {'handle' if end.concurrency == 1 else 'connections'}"
    return f"{which} {'past' if end.is_direct else 'through'} the cache"
