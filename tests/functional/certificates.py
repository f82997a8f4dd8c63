"""Certificates for NBD over TLS, made anew by openssl, in the directories that QEMU, nbdkit and libnbd look in."""

from __future__ import annotations

from pathlib import Path

from .images import run

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


def make_authority(directory: Path, name: str = "test authority") -> Path:
    """Make an authority in a new directory."""
    directory.mkdir()
    run(
        *("openssl", "req", "-x509", *_KEY, "-subj", f"/CN={name}"),
        *("-keyout", directory / "ca-key.pem", "-out", directory / "ca-cert.pem"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    return directory


def make_certificate(directory: Path, authority: Path, kind: str, name: str, alternatives: str = "") -> Path:
    """Make a certificate of a kind (``server``, ``client``) in a directory, beside that of its authority."""
    directory.mkdir(exist_ok=True)
    (directory / "ca-cert.pem").write_bytes((authority / "ca-cert.pem").read_bytes())
    run(
        *("openssl", "req", "-x509", *_KEY, "-subj", f"/CN={name}"),
        *("-CA", authority / "ca-cert.pem", "-CAkey", authority / "ca-key.pem"),
        *("-keyout", directory / f"{kind}-key.pem", "-out", directory / f"{kind}-cert.pem"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"extendedKeyUsage={kind}Auth"),
        *(("-addext", f"subjectAltName={alternatives}") if alternatives else ()),
    )
    return directory


def make_all(directory: Path, *, client: str = "here") -> Path:
    """Make ``server`` and ``client`` below a new directory, with certificates of one authority."""
    directory.mkdir()
    authority = make_authority(directory / "authority")
    make_certificate(directory / "server", authority, "server", "server", "IP:127.0.0.1,DNS:localhost")
    make_certificate(directory / "client", authority, "client", client)
    return directory
