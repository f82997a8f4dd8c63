"""Asking an end where its data is, without being held up by storage that hangs.

There is no request to a queue for that: it takes calls that wait in the kernel, or for a server, for as long as the
storage does, and for the requests before them too.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from volmig import errors
from volmig.transfer.base import EndMark
from volmig.transfer.control import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.watch import first_mark

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 0.4
_AT_ONCE = 64

_WHERE = "the question where the data lies"

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Call:
    """A question, and its answer."""

    end: OpenEnd | None
    """What the work uses and must stay open; None when it is about to open something."""
    work: Callable[[], Any]
    result: Any = None
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_abandoned: bool = False

    def run(self) -> None:
        """Do the work; what it opens for nobody is closed."""
        try:
            with contextlib.nullcontext() if self.end is None else self.end.kept_open():
                self.result = self.work()
        except BaseException as exc:  # noqa: BLE001 - raised where it was asked
            self.error = exc
        with self._lock:
            self.ended.set()
            if self._is_abandoned:
                self._close()

    def abandon(self) -> None:
        """Note that nobody waits for it any more."""
        with self._lock:
            self._is_abandoned = True
            if self.ended.is_set():
                self._close()

    def _close(self) -> None:
        if self.end is None and self.result is not None:
            self.result.close()


class Lookup:
    """A thread that asks ends, one question at a time, while the caller waits and listens to the control."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._is_stuck = False
        self._thread = threading.Thread(target=self._serve, name="volmig-lookup", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            raise errors.ResourcesExhausted(what="thread for a copy", reason=str(exc)) from exc

    def close(self) -> None:
        """End the thread; one that hangs ends by itself when its question is answered."""
        self._calls.put(None)
        if not self._is_stuck:
            self._thread.join()

    def ask(self, end: OpenEnd, work: Callable[[], T], what: str) -> T:
        """Return what *work* returns, which asks *end*; raise what it raises.

        :param what: what is asked, for the error when it is not answered.
        :raises volmig.errors.TransferCancelled: within a second of the cancellation.
        """
        result: T = self._await(_Call(end=end, work=work), f"{what} of {end.name}")
        return result

    def open(self, name: str, work: Callable[[], OpenEnd]) -> OpenEnd:
        """Return the end that *work* opens; one that comes when nobody waits for it any more is closed.

        :param name: what is opened, for the error when that takes for ever.
        :raises volmig.errors.TransferCancelled: within a second of the cancellation.
        """
        opened: OpenEnd = self._await(_Call(end=None, work=work), f"the opening of {name}")
        return opened

    def _await(self, asked: _Call, what: str) -> Any:
        # Whatever ends the waiting, an interrupt from the keyboard too, leaves the thread to itself.
        self._is_stuck = True
        self._calls.put(asked)
        try:
            self._listen(asked, what)
        except BaseException:
            asked.abandon()
            raise
        self._is_stuck = False
        if asked.error is not None:
            raise asked.error
        return asked.result

    def _listen(self, asked: _Call, what: str) -> None:
        started = time.monotonic()
        until: float | None = None
        while not asked.ended.wait(_POLL_SECONDS):
            now = time.monotonic()
            if self._control.cancelled:
                until = until or now + _GRACE_SECONDS
                if now >= until:
                    raise self._unanswered(what, now - started)

    def _unanswered(self, what: str, seconds: float) -> errors.TransferCancelled:
        cancelled = self._control.cancellation()
        hint = f"{cancelled.hint} The storage hangs: {what} has not been answered for {seconds:.1f} s."
        unanswered = errors.TransferCancelled(hint=hint, **cancelled.fields)
        unanswered.storage_hangs = True
        return unanswered

    def extents(self, end: OpenEnd, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        """Yield what :meth:`OpenEnd.extents` does."""
        extents = end.extents(size_bytes, begin_bytes)

        def more() -> list[tuple[int, int]]:
            return list(itertools.islice(extents, _AT_ONCE))

        while found := self.ask(end, more, _WHERE):
            yield from found

    def data_bytes(self, end: OpenEnd, size_bytes: int, begin_bytes: int = 0) -> int:
        """Return what :meth:`OpenEnd.data_bytes` does."""
        return self.ask(end, lambda: end.data_bytes(size_bytes, begin_bytes), _WHERE)

    def mark(self, end: OpenEnd) -> EndMark:
        """Return what :func:`volmig.transfer.watch.first_mark` does."""
        return self.ask(end, lambda: first_mark(end), "the flush")

    def survey(self, end: OpenEnd, begin_bytes: int, end_bytes: int) -> None:
        """Let an end do its :meth:`OpenEnd.survey`."""
        self.ask(end, lambda: end.survey(begin_bytes, end_bytes), "the question where the holes lie")

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()


@contextlib.contextmanager
def looking(control: Control) -> Iterator[Lookup]:
    """Give a :class:`Lookup`, and let go of it afterwards."""
    lookup = Lookup(control)
    try:
        yield lookup
    finally:
        lookup.close()
