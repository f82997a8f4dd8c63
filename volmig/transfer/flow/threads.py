"""Requests by way of threads: for handles, and wherever io_uring is not to be had."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Collection, Sequence

from volmig import errors
from volmig.transfer.control import Control
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.request import Kind, Request, RequestQueue

_MOST_THREADS = 8
_PAUSE_SECONDS = 0.1


class ThreadQueue(RequestQueue):
    """Requests that threads make, each waiting for one at a time.

    An end has as many threads as it says that it can be used by; two ends do not wait for each other. The control
    is asked once more when a request's turn has come, so that none begins after a cancellation or a deadline.
    """

    def __init__(self, arena: Arena, ends: Sequence[OpenEnd], control: Control) -> None:
        self._arena = arena
        self._control = control
        self._requests: set[Request] = set()
        self._ended: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._abandoned = threading.Event()
        self._inputs: dict[OpenEnd, queue.SimpleQueue[Request | None]] = {}
        self._threads: list[tuple[OpenEnd, threading.Thread]] = []
        for end in ends:
            self._inputs[end] = queue.SimpleQueue()
            for index in range(min(end.concurrency, _MOST_THREADS)):
                thread = threading.Thread(
                    target=self._serve,
                    args=(self._inputs[end],),
                    name=f"volmig-{'write' if end.is_destination else 'read'}-{index}",
                    daemon=True,
                )
                self._threads.append((end, thread))
        started = 0
        try:
            for _, thread in self._threads:
                thread.start()
                started += 1
        except RuntimeError as exc:
            del self._threads[started:]
            self.close()
            raise errors.ResourcesExhausted(what="thread for a copy", reason=str(exc)) from exc

    @property
    def in_flight(self) -> Collection[Request]:
        return self._requests

    def submit(self, request: Request) -> None:
        request.is_done = False
        self._requests.add(request)
        self._inputs[request.end].put(request)

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        ended: list[Request] = []
        try:
            ended.append(self._ended.get(timeout=timeout_seconds))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            self._requests.difference_update(ended)
        return ended

    def recall(self) -> None:
        for requests in self._inputs.values():
            with contextlib.suppress(queue.Empty):
                while True:
                    self._requests.discard(requests.get_nowait())
        # A signal's handler may have raised after one was taken from the queue, and before it was noted.
        self._requests = {request for request in self._requests if not request.is_done}

    def close(self) -> None:
        self._abandoned.set()
        for end, _ in self._threads:
            self._inputs[end].put(None)
        if not self._requests:
            for _, thread in self._threads:
                thread.join()

    def _serve(self, requests: queue.SimpleQueue[Request | None]) -> None:
        while (request := requests.get()) is not None:
            try:
                with request.end.kept_open():
                    self._attempt(request)
            except Exception as exc:  # noqa: BLE001 - whoever waits for the request raises it
                request.error = exc
            request.is_done = True
            self._ended.put(request)

    def _attempt(self, request: Request) -> None:
        while True:
            while self._control.paused and not self._control.cancelled and not self._abandoned.is_set():
                self._control.wait(_PAUSE_SECONDS)
            if self._control.cancelled or self._abandoned.is_set():
                raise self._control.cancellation()
            try:
                request.result = self._do(request)
            except InterruptedError:
                continue
            return

    def _do(self, request: Request) -> int:
        end = request.end
        if request.kind is Kind.READ:
            return end.read_some(self._arena.view[request.at : request.at + request.length], request.offset)
        if request.kind is Kind.WRITE:
            return end.write_some(self._arena.view[request.at : request.at + request.length], request.offset)
        if request.kind is Kind.ZERO:
            return int(end.zero(request.offset, request.length))
        if request.kind is Kind.WRITE_BACK:
            end.write_back(request.offset, request.length)
        else:
            end.flush()
        return 0
