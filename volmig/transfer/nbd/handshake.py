"""The handshake with an NBD server: fixed newstyle, ``NBD_OPT_GO``, structured replies and the map of zeroes.

After the protocol description of the NBD project (``doc/proto.md`` in its repository).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from volmig.transfer.nbd.tls import Tls, TlsError
from volmig.transfer.nbd.wire import EndedError, ProtocolError, Wire

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_CAN_MULTI_CONN = 1 << 8

_OPT_STARTTLS, _OPT_GO, _OPT_STRUCTURED_REPLY, _OPT_SET_META_CONTEXT = 5, 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT, _REP_ERROR = 1, 3, 4, 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_MAGIC, _OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_CONTEXT = b"base:allocation"

_LONGEST_OPTION_REPLY_BYTES = 64 * 1024
_MOST_OPTION_REPLIES = 1024
_DEFAULT_PAYLOAD_BYTES = 32 * 1024 * 1024
_LARGEST_EXPORT_BYTES = (1 << 63) - 1

_REFUSALS = {
    1: "it does not know the request",
    2: "its policy forbids it",
    3: "it finds the request invalid",
    4: "its platform cannot do it",
    5: "it wants TLS, which an address asks for that begins with nbds",
    6: "there is no such export",
    7: "it is shutting down",
    8: "it wants its block size to be asked for",
    9: "the request is too big",
}


class RefusedError(OSError):
    """The server refused an option of the handshake."""

    def __init__(self, code: int, text: str) -> None:
        reason = _REFUSALS.get(code, f"error {code}")
        super().__init__(errno.ECONNREFUSED, f"the NBD server refuses: {reason}{f' ({text})' if text else ''}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What a server says about an export."""

    size_bytes: int
    flags: int
    block_bytes: int
    """Positions and lengths of requests must be multiples of this."""
    payload_bytes: int
    """Most data of one request."""
    has_map: bool
    """Whether it tells which ranges read as zeroes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What both sides agreed on."""

    export: Export
    structured: bool
    """Whether replies are structured."""
    context_id: int | None
    """Under which number the map of zeroes is told; None when it is not."""


def shake_hands(wire: Wire, name: str, tls: Tls | None = None) -> Agreement:
    """Agree with a server on the export *name*.

    :param tls: to be used from the first moment that the protocol has for it, before the name of the export is told;
        nothing is told to a server that does not agree to it.

    :raises OSError: when there is no such export, or no agreement.
    """
    magic, option_magic, flags = wire.unpack(">8s8sH")
    if magic != _MAGIC:
        raise ProtocolError("what listens there is no NBD server")
    if option_magic != _OPTION_MAGIC or not flags & _FIXED_NEWSTYLE:
        raise ProtocolError("the server is too old: it does not know the fixed newstyle handshake")
    wire.send(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
    if tls is None:
        structured = _ask_structured(wire)
    else:
        _start_tls(wire, tls)
        try:
            structured = _ask_structured(wire)
        except (EndedError, ConnectionError) as exc:
            # With TLS 1.3 a client learns only now what the server thinks of its certificate, and not by words.
            raise TlsError("the server ended the connection; it may not accept this client's certificate") from exc
    context_id = _ask_context(wire, name) if structured else None
    export = _go(wire, name, has_map=context_id is not None)
    return Agreement(export=export, structured=structured, context_id=context_id)


def _start_tls(wire: Wire, tls: Tls) -> None:
    _send_option(wire, _OPT_STARTTLS, b"")
    kind, data = _option_reply(wire, _OPT_STARTTLS)
    if kind != _REP_ACK or data:
        try:
            _check_refusal(kind, data, fatal=None)
        except RefusedError as exc:
            raise TlsError("the server does not offer it, and nothing is sent to it without") from exc
    # The bytes behind the acknowledgement are TLS's: none was read yet, so that nobody can have slipped any in.
    wire.start_tls(tls)


def _ask_structured(wire: Wire) -> bool:
    _send_option(wire, _OPT_STRUCTURED_REPLY, b"")
    kind, data = _option_reply(wire, _OPT_STRUCTURED_REPLY)
    if kind == _REP_ACK:
        if data:
            raise ProtocolError("an acknowledgement has data")
        return True
    _check_refusal(kind, data, fatal=(5, 7))
    return False


def _ask_context(wire: Wire, name: str) -> int | None:
    encoded = name.encode()
    _send_option(
        wire,
        _OPT_SET_META_CONTEXT,
        struct.pack(">I", len(encoded)) + encoded + struct.pack(">II", 1, len(_CONTEXT)) + _CONTEXT,
    )
    found: int | None = None
    for _ in range(_MOST_OPTION_REPLIES):
        kind, data = _option_reply(wire, _OPT_SET_META_CONTEXT)
        if kind == _REP_ACK:
            return found
        if kind != _REP_META_CONTEXT:
            # An export that does not exist is told of by the next option, too.
            _check_refusal(kind, data, fatal=(5, 7))
            return None
        if len(data) < 4 or data[4:] != _CONTEXT or found is not None:
            raise ProtocolError("it offers a context that was not asked for")
        (found,) = struct.unpack_from(">I", data)
    raise ProtocolError("an option is answered without end")


def _go(wire: Wire, name: str, *, has_map: bool) -> Export:
    encoded = name.encode()
    wanted = struct.pack(">I", len(encoded)) + encoded + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    _send_option(wire, _OPT_GO, wanted)
    size_and_flags: tuple[int, int] | None = None
    blocks = (1, _DEFAULT_PAYLOAD_BYTES)
    for _ in range(_MOST_OPTION_REPLIES):
        kind, data = _option_reply(wire, _OPT_GO)
        if kind == _REP_ACK:
            return _checked_export(size_and_flags, blocks, has_map=has_map)
        if kind != _REP_INFO or len(data) < 2:
            _check_refusal(kind, data, fatal=None)
        (what,) = struct.unpack_from(">H", data)
        if what == _INFO_EXPORT:
            if len(data) != 12:
                raise ProtocolError("what it says about the export is malformed")
            size_and_flags = struct.unpack_from(">QH", data, 2)
        elif what == _INFO_BLOCK_SIZE:
            if len(data) != 14:
                raise ProtocolError("what it says about block sizes is malformed")
            smallest, _, largest = struct.unpack_from(">III", data, 2)
            blocks = (smallest, largest)
    raise ProtocolError("an option is answered without end")


def _checked_export(size_and_flags: tuple[int, int] | None, blocks: tuple[int, int], *, has_map: bool) -> Export:
    if size_and_flags is None:
        raise ProtocolError("it does not tell the size of the export")
    size, flags = size_and_flags
    smallest, largest = blocks
    if not flags & FLAG_HAS_FLAGS or size > _LARGEST_EXPORT_BYTES:
        raise ProtocolError("what it says about the export cannot be")
    if not 1 <= smallest <= 64 * 1024 or smallest & (smallest - 1) or largest < smallest:
        raise ProtocolError(f"its block size of {smallest} bytes, {largest} at most, cannot be")
    if size % smallest:
        raise ProtocolError(f"its size of {size} bytes is not a multiple of its block size, {smallest}")
    payload = min(largest, _DEFAULT_PAYLOAD_BYTES) // smallest * smallest
    return Export(
        size_bytes=size,
        flags=flags,
        block_bytes=smallest,
        payload_bytes=payload,
        has_map=has_map,
    )


def _send_option(wire: Wire, option: int, data: bytes) -> None:
    wire.send(_OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)


def _option_reply(wire: Wire, option: int) -> tuple[int, bytes]:
    magic, theirs, kind, length = wire.unpack(">QIII")
    if magic != _OPTION_REPLY_MAGIC or theirs != option:
        raise ProtocolError("an option is answered by something else")
    if length > _LONGEST_OPTION_REPLY_BYTES:
        raise ProtocolError(f"the answer to an option has {length} bytes")
    return kind, wire.received(length)


def _check_refusal(kind: int, data: bytes, *, fatal: tuple[int, ...] | None) -> None:
    """Raise for an answer that is no refusal, and for one in *fatal*; for every one when that is None."""
    if not kind & _REP_ERROR:
        raise ProtocolError(f"an option is answered by something unexpected ({kind})")
    code = kind & ~_REP_ERROR
    if fatal is None or code in fatal:
        raise RefusedError(code, data.decode(errors="replace")[:200])
