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
_KNOWN = ("socket", "tls-certificates")
_NOT_OFFERED = {
    "tls-verify-peer": "the server's certificate is always verified",
    "tls-psk-file": "only certificates (X.509) are, no shared keys",
    "tls-username": "certificates say who is who",
}
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
    tls_certificates: str = ""
    """Directory with the certificates for TLS; empty for a connection without TLS."""

    @property
    def uri(self) -> str:
        """The address as it is written, and as libnbd and its programs read it."""
        scheme, query = "nbd", []
        if self.socket_path:
            query.append(f"socket={urllib.parse.quote(self.socket_path, safe='/')}")
        if self.tls_certificates:
            scheme = "nbds"
            query.append(f"tls-certificates={urllib.parse.quote(self.tls_certificates, safe='/')}")
        behind = f"/{urllib.parse.quote(self.export, safe='')}{'?' if query else ''}{'&'.join(query)}"
        if self.socket_path:
            return f"{scheme}+unix://{behind}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{scheme}://{host}{port}{behind}"


def is_address(end: End) -> bool:
    """Say whether an end is an NBD address, good or bad; only a string can be one.

    A file whose relative path looks like an address is reached by ``./`` in front of it.
    """
    return isinstance(end, str) and _SCHEME.match(end) is not None


def parse(text: str) -> NbdAddress:
    """Read ``nbd://host[:port][/export]`` or ``nbd+unix:///[export]?socket=path``, and both with TLS.

    With TLS they begin with ``nbds`` and have the parameter ``tls-certificates``. Percent signs escape in the export
    and in the values of parameters.

    :raises volmig.errors.RequestInvalid: when it is none of them, or asks for what is not offered.
    """

    def refuse(reason: str) -> errors.RequestInvalid:
        return errors.RequestInvalid(what=text, reason=reason)

    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise refuse(f"it is not an address: {exc}") from exc
    if parts.scheme not in ("nbd", "nbds", "nbd+unix", "nbds+unix"):
        raise refuse("its scheme is none of nbd://, nbds://, nbd+unix:// and nbds+unix://")
    if parts.fragment or text.endswith("#"):
        raise refuse("it has a fragment (#); escape the sign as %23")
    if "@" in parts.netloc:
        raise refuse("it names a user, which is not offered: certificates say who is who")
    export = _unescaped(parts.path.removeprefix("/"), refuse)
    if len(export.encode()) > _LONGEST_EXPORT_BYTES:
        raise refuse(f"the name of its export is longer than {_LONGEST_EXPORT_BYTES} bytes")
    given = _parameters(parts.query, refuse)
    certificates = _certificates(given, refuse) if parts.scheme.startswith("nbds") else ""
    if parts.scheme.endswith("+unix"):
        socket_path = _socket_path(parts, given, refuse)
        return NbdAddress(socket_path=socket_path, export=export, tls_certificates=certificates)
    if given or (not certificates and "?" in text):
        raise refuse("it has a query (?) that is not for such an address")
    if not parts.hostname:
        raise refuse("it names no host")
    if port == 0:
        raise refuse("port 0 is none")
    return NbdAddress(
        host=parts.hostname,
        port=DEFAULT_PORT if port is None else port,
        export=export,
        tls_certificates=certificates,
    )


def _parameters(query: str, refuse: _Refuse) -> dict[str, str]:
    """Return the parameters of an address; one that is there twice, or is not known, is refused."""
    found: dict[str, str] = {}
    for item in query.split("&") if query else []:
        key, _, value = item.partition("=")
        if key in _NOT_OFFERED:
            raise refuse(f"its parameter {key!r} is not offered: {_NOT_OFFERED[key]}")
        if key not in _KNOWN:
            raise refuse(f"its parameter {key!r} is unknown; known ones are {', '.join(_KNOWN)}")
        if key in found:
            raise refuse(f"its parameter {key!r} must be there exactly once")
        found[key] = _unescaped(value, refuse)
    return found


def _certificates(given: dict[str, str], refuse: _Refuse) -> str:
    directory = given.pop("tls-certificates", "")
    if not directory:
        raise refuse("it must name the directory with the certificates for TLS, as ?tls-certificates=directory")
    return directory


def _socket_path(parts: urllib.parse.SplitResult, given: dict[str, str], refuse: _Refuse) -> str:
    if parts.netloc:
        raise refuse("it names a host; write three slashes for a Unix socket")
    path = given.pop("socket", "")
    if not path:
        raise refuse("it must name the Unix socket exactly once, as ?socket=path")
    if given:
        raise refuse("certificates are for addresses that begin with nbds")
    return path


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
