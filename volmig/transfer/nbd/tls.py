"""TLS for connections to NBD servers, apart from the sockets.

What comes from a socket is fed to a session, and what the session has to send is taken from it: so waiting, its limits
and its end are the same with and without TLS, and nothing is ever sent that the session did not encrypt.
"""

from __future__ import annotations

import errno
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

CA, CRL, CERTIFICATE, KEY = "ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem"
"""Names of the files in a directory of certificates, as QEMU, nbdkit and libnbd look for them."""

CERTIFICATES_HINT = (
    f"The directory must have {CA}, and, for servers that verify their clients, {CERTIFICATE} and {KEY}."
)


class TlsError(OSError):
    """TLS was not agreed upon, or broke."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPROTO, f"TLS: {reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Whom to believe, and who we are."""

    context: ssl.SSLContext
    host: str
    """Name or number that the server's certificate must have; empty where there is none to hold against it, as with a
    Unix socket."""

    @classmethod
    def from_directory(cls, directory: str, *, host: str) -> Self:
        """Read the certificates in a directory.

        The server must have a certificate of the authority in ``ca-cert.pem``, which its list ``ca-crl.pem``, if there
        is one, does not revoke. No other authority is believed, and no TLS older than 1.2 is spoken. Where there is
        ``client-cert.pem`` it is shown to the server.

        :raises OSError: when something cannot be read, or is not what it should be. No part of a key is in it.
        """
        place = Path(directory)
        if not place.is_dir():
            raise OSError(errno.ENOTDIR, f"{place} is not a directory, or not to be seen")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.check_hostname = bool(host)
        # As GnuTLS has it: whatever is in the file is believed, also an authority that another one has signed.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        _load_authority(context, place / CA)
        if (place / CRL).exists():
            _load_authority(context, place / CRL)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        certificate, key = place / CERTIFICATE, place / KEY
        if certificate.exists() or key.exists():
            _load_own(context, certificate, key)
        return cls(context=context, host=host)


def _load_authority(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as exc:
        raise OSError(errno.EINVAL, f"{path} does not hold what it should, in PEM ({_reason(exc)})") from exc
    except OSError as exc:
        raise OSError(exc.errno, f"{path}: {exc.strerror}") from exc


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        if not path.exists():
            raise OSError(errno.ENOENT, f"{path} is missing, and the other half of the pair is there")
    if key.stat().st_mode & stat.S_IRWXO:
        raise OSError(errno.EPERM, f"everyone may use the private key {key}: take their rights from it (chmod o= …)")

    def no_password() -> str:
        raise OSError(errno.EINVAL, f"the private key {key} is encrypted, and nobody is there to be asked")

    try:
        # Without an answer of ours the terminal would be asked.
        context.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as exc:
        raise OSError(errno.EINVAL, f"{certificate} and {key} are no pair in PEM ({_reason(exc)})") from exc
    except PermissionError as exc:
        raise OSError(exc.errno, f"{certificate} or {key}: {exc.strerror}") from exc


class TlsSession:
    """One session as a client, between the bytes that are sent and those that are meant.

    :meth:`take_outgoing` must be asked after each other call, and what it returns be sent: a session may have to
    answer.
    """

    def __init__(self, tls: Tls) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls
        try:
            self._object = tls.context.wrap_bio(self._incoming, self._outgoing, server_hostname=tls.host or None)
        except ValueError as exc:
            raise TlsError(f"no certificate can have the name {tls.host!r}") from exc

    def handshake(self) -> bool:
        """Go on with the handshake; return whether it is complete. If not, more must be fed.

        :raises TlsError: when the server's certificate is not to be believed, or there is no agreement. There is
            something to send all the same, which tells the server.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as exc:
            self._fail(exc)
        return True

    def encrypt(self, data: memoryview | bytes) -> None:
        """Encrypt all of *data*."""
        view, done = memoryview(data), 0
        try:
            while done < len(view):
                done += self._object.write(view[done:])
        except ssl.SSLError as exc:
            self._fail(exc)

    def decrypt(self, view: memoryview) -> int | None:
        """Fill the beginning of *view*; return how many bytes that are.

        :returns: None when more must be fed; 0 when the server has said that no more comes.
        :raises TlsError: when what came is not what the server sent.
        """
        try:
            # Despite its type in the stubs it takes a view, and fills it.
            return self._object.read(len(view), view)  # type: ignore[return-value]
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLError as exc:
            self._fail(exc)

    def feed(self, data: memoryview) -> None:
        """Take over what came from the socket."""
        self._incoming.write(data)

    def take_outgoing(self) -> bytes:
        """Return what is to be sent."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def say_goodbye(self) -> None:
        """Let the server know that no more comes."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            return  # it wants the server's goodbye, for which nobody waits

    def _fail(self, exc: ssl.SSLError) -> NoReturn:
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise TlsError(f"the server's certificate is not believed: {exc.verify_message.rstrip('.')}") from exc
        raise TlsError(_told(_reason(exc))) from exc


def _reason(exc: ssl.SSLError) -> str:
    return exc.reason or exc.strerror or str(exc)


def _told(reason: str) -> str:
    """Return in words what OpenSSL has a name for."""
    text = reason.lower().replace("_", " ")
    if "alert" in reason.lower():
        return f"the server ends it ({text})"
    return text
