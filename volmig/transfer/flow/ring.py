"""Requests by way of io_uring: many under way at once, made and awaited by one thread with few system calls.

The kernel's interface is used directly (io_uring_setup(2), io_uring_enter(2) and the header ``linux/io_uring.h``),
so that it works wherever Python does; waiting releases the interpreter's lock.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import functools
import mmap
import os
import struct
import threading
from collections.abc import Callable, Collection, Sequence

from volmig.transfer.control import Control
from volmig.transfer.ends.files import CANNOT_ZERO, DIRECT_BYTES, NO_SYNC, WRITE_BACK, FileEnd
from volmig.transfer.flow.arena import Arena
from volmig.transfer.flow.request import Kind, Request, RequestQueue

# These numbers are the same on all architectures that Python runs on, but for alpha.
_SYS_IO_URING_SETUP = 425
_SYS_IO_URING_ENTER = 426

_OFFSET_RINGS = 0
_OFFSET_ENTRIES = 0x10000000
_FEATURES = 1 << 0 | 1 << 1 | 1 << 8
"""SINGLE_MMAP, NODROP and EXT_ARG: Linux 5.11."""
_SETUP_CLAMP = 1 << 4
_ENTER_GETEVENTS = 1 << 0
_ENTER_EXT_ARG = 1 << 3

_OP_FSYNC = 3
_OP_SYNC_RANGE = 8
_OP_CANCEL = 14
_OP_FALLOCATE = 17
_OP_READ = 22
_OP_WRITE = 23

_PARAMETERS = struct.Struct("=7I3I 8IQ 8IQ")
_ENTRY = struct.Struct("=BBHiQQIIQ24x")
_COMPLETION = struct.Struct("=QiI")
_WAIT_ARGUMENT = struct.Struct("=QIIQ")
_TIME = struct.Struct("=qq")
_WORD = struct.Struct("=I")

_LARGEST_LENGTH = 0xFFFFFFFF
_AGAIN = frozenset({errno.EAGAIN, errno.EINTR})

_NO_ERROR = {Kind.ZERO: CANNOT_ZERO, Kind.WRITE_BACK: NO_SYNC}
"""What a request may be answered without having failed."""


_CANCEL_ALL = 1 << 0 | 1 << 2
"""ALL and ANY: whatever it is."""

_NOBODY = 0
"""Number of what nobody waits for."""


class RingUnavailable(Exception):
    """The kernel gives this process no io_uring; the message says why."""


class RingQueue(RequestQueue):
    """Requests to files and block devices by io_uring."""

    def __init__(self, arena: Arena, entries: int, control: Control) -> None:
        """Set a ring up.

        :param entries: how many requests may be under way at most.
        :param control: asked before a request that was interrupted is made again.
        :raises RingUnavailable: when the kernel refuses, as containers and old kernels do.
        """
        self._arena = arena
        self._control = control
        self._ring = _Ring(entries)
        self._requests: dict[int, Request] = {}
        self._next_id = _NOBODY + 1
        self._refused: list[Request] = []
        self._recalled = False

    @property
    def in_flight(self) -> Collection[Request]:
        return [*self._requests.values(), *self._refused] if self._refused else self._requests.values()

    def submit(self, request: Request) -> None:
        if request.kind is Kind.ZERO and not request.end.zeroes_cheaply:
            self._refused.append(request)
            return
        number = self._next_id
        self._next_id += 1
        request.place = None
        self._requests[number] = request
        self._push(number, request)

    def _push(self, number: int, request: Request) -> None:
        end = request.end
        if not isinstance(end, FileEnd):
            raise TypeError(f"{end.name} is neither a file nor a block device")
        if request.kind is Kind.FLUSH:
            self._ring.push(request, _OP_FSYNC, end.buffered, 0, 0, 0, number)
        elif request.kind is Kind.WRITE_BACK:
            # The field has 32 bits; 0 stands for all up to the end.
            length = request.length if request.length <= _LARGEST_LENGTH else 0
            self._ring.push(request, _OP_SYNC_RANGE, end.buffered, request.offset, 0, length, number, WRITE_BACK)
        elif request.kind is Kind.ZERO:
            # The length goes where others have the address, and the mode where they have the length.
            request.mode = end.zero_mode
            self._ring.push(request, _OP_FALLOCATE, end.buffered, request.offset, request.length, request.mode, number)
        else:
            operation = _OP_READ if request.kind is Kind.READ else _OP_WRITE
            fd = end.direct
            if fd is None or (request.offset | request.length | (request.at - self._arena.zeroes)) % DIRECT_BYTES:
                fd = end.buffered
            request.direct = fd != end.buffered
            address = self._arena.address + request.at
            self._ring.push(request, operation, fd, request.offset, address, request.length, number)

    def kick(self) -> None:
        self._ring.submit()

    def wait(self, timeout_seconds: float) -> Sequence[Request]:
        ended, self._refused = self._refused, []
        if ended:
            timeout_seconds = 0.0
        self._ring.wait(timeout_seconds)
        # An answer is forgotten only when it was taken note of: a signal's handler may raise between any two lines.
        answers = self._ring.answers
        while answers:
            number, result = answers[0]
            request = self._requests.get(number)
            if request is not None and self._settle(request, result):
                ended.append(request)
            self._requests.pop(number, None)
            answers.popleft()
        return ended

    def _settle(self, request: Request, result: int) -> bool:
        """Note what the kernel answered; return False when the request is made once more."""
        if result >= 0:
            request.result = 1 if request.kind is Kind.ZERO else result
        elif self._is_to_be_repeated(request, -result):
            if not self._control.cancelled and not self._recalled:
                self.submit(request)
                return False
            request.error = self._control.cancellation()
        elif -result not in _NO_ERROR.get(request.kind, frozenset()):
            request.error = OSError(-result, os.strerror(-result))
        return True

    def recall(self) -> None:
        self._recalled = True
        self._refused.clear()
        taken_to = self._ring.withdraw()
        for number, request in list(self._requests.items()):
            if request.place is None or _is_behind(request.place, taken_to):
                del self._requests[number]
        # Of what the kernel was given, a few at a time are begun, and the others wait; they end at once (Linux 5.19).
        self._ring.push(None, _OP_CANCEL, -1, 0, 0, 0, _NOBODY, _CANCEL_ALL)
        self._ring.submit()

    @staticmethod
    def _is_to_be_repeated(request: Request, number: int) -> bool:
        if number in _AGAIN:
            return True
        end = request.end
        if not isinstance(end, FileEnd):
            return False
        if number == errno.EINVAL and request.direct:
            end.give_up_direct()
            return True
        return request.kind is Kind.ZERO and number in CANNOT_ZERO and end.next_zero_mode(request.mode)

    def close(self) -> None:
        if not self._requests:
            self._ring.close()
            return
        # The kernel still uses the arena: it has to stay until the last request has ended. So have the descriptors:
        # of a request that waits for its turn it looks the file up by its number only when that has come.
        kept = contextlib.ExitStack()
        for end in {request.end for request in self._requests.values()}:
            kept.enter_context(end.kept_open())
        threading.Thread(target=self._await_stragglers, args=(kept,), name="volmig-stuck-requests", daemon=True).start()

    def _await_stragglers(self, kept: contextlib.ExitStack) -> None:
        with kept:
            while self._requests:
                self._ring.wait(1.0)
                while self._ring.answers:
                    self._requests.pop(self._ring.answers.popleft()[0], None)
            self._ring.close()


class _Ring:
    """The two rings that are shared with the kernel.

    What was submitted is read from the kernel's own count, and not counted along: an exception from a signal's handler
    may come right after the system call.
    """

    def __init__(self, entries: int) -> None:
        parameters = bytearray(_PARAMETERS.size)
        struct.pack_into("=I", parameters, 8, _SETUP_CLAMP)
        try:
            self._fd = _call(_SYS_IO_URING_SETUP, entries, _address(parameters), 0, 0, 0, 0)
        except OSError as exc:
            raise RingUnavailable(f"io_uring is refused ({exc.strerror})") from exc
        self._memory: mmap.mmap | None = None
        self._entries: mmap.mmap | None = None
        self.answers: collections.deque[tuple[int, int]] = collections.deque()
        """(number, result) of entries that have ended."""
        try:
            self._map(parameters)
            # Some filters let a process set a ring up and not use it.
            _call(_SYS_IO_URING_ENTER, self._fd, 0, 0, 0, 0, 0)
        except OSError as exc:
            self.close()
            raise RingUnavailable(f"io_uring is refused ({exc.strerror})") from exc
        except BaseException:
            self.close()
            raise
        self._fence = threading.Lock()
        self._timeout = bytearray(_TIME.size)
        self._argument = bytearray(_WAIT_ARGUMENT.size)
        _WAIT_ARGUMENT.pack_into(self._argument, 0, 0, 8, 0, _address(self._timeout))
        self._argument_address = _address(self._argument)

    def _map(self, parameters: bytearray) -> None:
        values = _PARAMETERS.unpack(parameters)
        submissions, completions, features = values[0], values[1], values[5]
        if features & _FEATURES != _FEATURES:
            raise RingUnavailable("this kernel's io_uring is too old (before Linux 5.11)")
        (self._head, self._tail, mask, _, _, _, array, _, _) = values[10:19]
        (self._done_head, self._done_tail, done_mask, _, _, self._done, _, _, _) = values[19:28]
        length = max(array + submissions * 4, self._done + completions * _COMPLETION.size)
        self._memory = mmap.mmap(self._fd, length, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFFSET_RINGS)
        self._entries = mmap.mmap(
            self._fd, submissions * _ENTRY.size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFFSET_ENTRIES
        )
        self._capacity = submissions
        self._mask = self._word(mask)
        self._done_mask = self._word(done_mask)
        for index in range(submissions):
            _WORD.pack_into(self._memory, array + 4 * index, index)
        self._next = self._word(self._tail)

    def _word(self, position: int) -> int:
        value: int = _WORD.unpack_from(self._memory, position)[0]  # type: ignore[arg-type]
        return value

    @property
    def _unsubmitted(self) -> int:
        return (self._next - self._word(self._head)) & 0xFFFFFFFF

    def push(
        self,
        request: Request | None,
        operation: int,
        fd: int,
        offset: int,
        address: int,
        length: int,
        number: int,
        flags: int = 0,
    ) -> None:
        """Add an entry for the next :meth:`wait`, and note its place in its *request*."""
        if self._unsubmitted == self._capacity:
            self._enter(0, 0.0)
            if self._unsubmitted == self._capacity:
                raise OSError(errno.EBUSY, "io_uring takes no more requests")
        place = self._next
        _ENTRY.pack_into(
            self._entries,  # type: ignore[arg-type]
            (place & self._mask) * _ENTRY.size,
            operation, 0, 0, fd, offset, address, length, flags, number,
        )  # fmt: skip
        if request is not None:
            request.place = place
        self._next = (place + 1) & 0xFFFFFFFF
        # The kernel looks at this only within the call that this thread makes later, so that no barrier is needed.
        _WORD.pack_into(self._memory, self._tail, self._next)  # type: ignore[arg-type]

    def withdraw(self) -> int:
        """Take back what was added and not submitted; return the place of the first of it."""
        self._next = self._word(self._head)
        _WORD.pack_into(self._memory, self._tail, self._next)  # type: ignore[arg-type]
        return self._next

    def submit(self) -> None:
        """Submit what was added, without waiting."""
        if self._unsubmitted:
            self._enter(0, 0.0)

    def wait(self, timeout_seconds: float) -> None:
        """Submit what was added, and collect :attr:`answers`; wait for one, for the given time at most."""
        if not self._unsubmitted:
            self._collect()
        if not self.answers:
            self._enter(1, timeout_seconds)
            self._collect()

    def _enter(self, minimum: int, timeout_seconds: float) -> None:
        seconds = int(timeout_seconds)
        _TIME.pack_into(self._timeout, 0, seconds, int((timeout_seconds - seconds) * 1e9))
        try:
            _call(
                _SYS_IO_URING_ENTER, self._fd, self._unsubmitted, minimum,
                _ENTER_GETEVENTS | _ENTER_EXT_ARG, self._argument_address, _WAIT_ARGUMENT.size,
            )  # fmt: skip
        except OSError as exc:
            if exc.errno not in (errno.ETIME, errno.EINTR, errno.EAGAIN, errno.EBUSY):
                raise

    def _collect(self) -> None:
        tail = self._word(self._done_tail)
        # Taking and releasing a lock keeps the processor from reading entries before it reads the tail.
        with self._fence:
            head = self._word(self._done_head)
        while head != tail:
            number, result, _ = _COMPLETION.unpack_from(
                self._memory,  # type: ignore[arg-type]
                self._done + (head & self._done_mask) * _COMPLETION.size,
            )
            self.answers.append((number, result))
            head = (head + 1) & 0xFFFFFFFF
        # Only now, so that none is lost; one that is collected twice belongs to no request any more.
        with self._fence:
            _WORD.pack_into(self._memory, self._done_head, head)  # type: ignore[arg-type]

    def close(self) -> None:
        for memory in (self._memory, self._entries):
            if memory is not None:
                memory.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_behind(place: int, other: int) -> bool:
    """Say whether a place of an entry is *other* or comes after it; places begin again at 0 after 32 bits."""
    return (place - other) & 0xFFFFFFFF < 1 << 31


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@functools.cache
def _syscall() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = (ctypes.c_long,) * 7
    return function


def _call(*arguments: int) -> int:
    result = _syscall()(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
