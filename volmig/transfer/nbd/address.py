"""Addresses of NBD exports."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from volmig import errors

if TYPE_CHECKING:
    from volmig.transfer.base import End

DEFAULT_PORT = 10809
_LONGEST_EXPORT_BYTES = 4096
_SCHEME = re.compile(r"nbds?(?:\+[a-z]+)?://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class NbdAddress:
    """Where an NBD server listens, and the name of one of its exports."""

    host: str = ""
    """Name or number of the host; empty for a Unix socket."""
    port: int = DEFAULT_PORT
    socket_path: str = ""
    """Path of the Unix socket; empty for TCP."""
    export: str = ""
    """Name of the export; empty for the server's default."""

    @property
    def uri(self) -> str:
        """The address as it is written, and as other programs read it."""
        export = urllib.parse.quote(self.export, safe="")
        if self.socket_path:
            return f"nbd+unix:///{export}?socket={urllib.parse.quote(self.socket_path, safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"nbd://{host}{port}/{export}"


def is_address(end: End) -> bool:
    """Say whether an end is an NBD address, good or bad; only a string can be one.

    A file whose relative path looks like an address is reached by ``./`` in front of it.
    """
    return isinstance(end, str) and _SCHEME.match(end) is not None


def parse(text: str) -> NbdAddress:
    """Read ``nbd://host[:port][/export]`` or ``nbd+unix:///[export]?socket=path``.

    Percent signs escape in the export and in the path of the socket.

    :raises volmig.errors.RequestInvalid: when it is neither, or asks for what is not offered, such as TLS.
    """

    def refuse(reason: str) -> errors.RequestInvalid:
        return errors.RequestInvalid(what=text, reason=reason)

    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise refuse(f"it is not an address: {exc}") from exc
    if parts.scheme.startswith("nbds"):
        raise refuse("NBD over TLS is not offered; tunnel the connection, or use a Unix socket")
    if parts.scheme not in ("nbd", "nbd+unix"):
        raise refuse("its scheme is neither nbd:// nor nbd+unix://")
    if parts.fragment or text.endswith("#"):
        raise refuse("it has a fragment (#); escape the sign as %23")
    if "@" in parts.netloc:
        raise refuse("it names a user, which plain NBD does not have")
    export = _unescaped(parts.path.removeprefix("/"), refuse)
    if len(export.encode()) > _LONGEST_EXPORT_BYTES:
        raise refuse(f"the name of its export is longer than {_LONGEST_EXPORT_BYTES} bytes")
    if parts.scheme == "nbd+unix":
        return NbdAddress(socket_path=_socket_path(parts, refuse), export=export)
    if parts.query or "?" in text:
        raise refuse("it has a query (?), which TCP addresses do not have")
    if not parts.hostname:
        raise refuse("it names no host")
    if port == 0:
        raise refuse("port 0 is none")
    return NbdAddress(host=parts.hostname, port=DEFAULT_PORT if port is None else port, export=export)


def _socket_path(parts: urllib.parse.SplitResult, refuse: _Refuse) -> str:
    if parts.netloc:
        raise refuse("it names a host; write three slashes for a Unix socket")
    paths: list[str] = []
    for item in parts.query.split("&") if parts.query else []:
        key, _, value = item.partition("=")
        if key != "socket":
            raise refuse(f"its parameter {key!r} is unknown; only 'socket' is known")
        paths.append(_unescaped(value, refuse))
    if len(paths) != 1 or not paths[0]:
        raise refuse("it must name the Unix socket exactly once, as ?socket=path")
    return paths[0]


def _unescaped(text: str, refuse: _Refuse) -> str:
    try:
        found = urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError as exc:
        raise refuse("what it escapes is not UTF-8") from exc
    if "\0" in found:
        raise refuse("it has a NUL character")
    return found


if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _Refuse: TypeAlias = Callable[[str], errors.RequestInvalid]
