"""Requests to the ends of a copy, and what a queue does with them."""

from __future__ import annotations

import abc
import enum
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volmig.transfer.ends.base import OpenEnd


class Kind(enum.Enum):
    """What a request asks for."""

    READ = "read"
    WRITE = "write"
    ZERO = "zeroing"
    """Make a range read as zeroes without sending any."""
    WRITE_BACK = "write-back"
    """Bring a range from the cache to storage, without the promise that a flush makes."""
    FLUSH = "flush"


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One request, from its making to its end."""

    kind: Kind
    end: OpenEnd
    offset: int
    length: int
    at: int = 0
    """Position of its memory in the arena."""
    cost: int = 0
    """Bytes that it counts for with a bandwidth limit."""
    task: Any = None
    """What its maker needs to know when it has ended."""
    result: int = 0
    """Bytes moved. Of a zeroing: 1 when it was done, 0 when this end cannot do it that way."""
    direct: bool = False
    """Whether it goes past the cache; the queue notes it."""
    mode: int = 0
    """How it zeroes, for the queue."""
    place: int | None = None
    """Its place in the ring, for the queue; None while it has none."""
    is_done: bool = False
    """Whether a thread has ended it, for the queue."""
    error: Exception | None = None
    """Why it failed; an ``OSError``, or what a handle raised."""
    first_offset: int = -1
    """Where it began, while ``offset`` and ``length`` are of what is left of it."""
    started_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.first_offset = self.offset

    def describe(self) -> str:
        """Say what it is, for a message."""
        waited = time.monotonic() - self.started_at
        what = f"the {self.kind.value} of {self.length} bytes at byte {self.offset}"
        if self.kind is Kind.FLUSH:
            what = "the flush"
        return f"{what} of {self.end.name} has not been answered for {waited:.1f} s"


class RequestQueue(abc.ABC):
    """Requests that are under way. Used by one thread."""

    @property
    @abc.abstractmethod
    def in_flight(self) -> Collection[Request]:
        """Requests that have not ended."""

    @abc.abstractmethod
    def submit(self, request: Request) -> None:
        """Begin a request; it may really begin with the next :meth:`wait`."""

    def kick(self) -> None:
        """See to it that what was submitted begins now."""

    def recall(self) -> None:
        """Forget the requests that have not begun: they never will."""

    @abc.abstractmethod
    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        """Return requests that have ended: at least one, unless none does within the time."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what the queue took. Requests that are still under way are left to themselves.

        Their memory, and the files that they use, stay for as long as they need them.
        """
