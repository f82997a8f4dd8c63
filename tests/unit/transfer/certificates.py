"""Certificates for tests of TLS, good until 2126, and their keys, which protect nothing.

Kept as text, so that unit tests need no program that makes certificates.
"""

from __future__ import annotations

import ssl
from pathlib import Path

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBpzCCAU2gAwIBAgIUGNL8cwfbJtAP33TVKcW5vk0drUMwCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVdm9sbWlnIHRlc3QgYXV0aG9yaXR5MCAXDTI2MTEyMDE3NDYx
NVoYDzIxMjYxMDI3MTc0NjE1WjAgMR4wHAYDVQQDDBV2b2xtaWcgdGVzdCBhdXRo
b3JpdHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATvazCuNb0Ys3ASfMbiOo7H
hkpae5kAzMziJOHTp82RypKV3uWD13ie5kIJU5pqgbHR+kbEiIjuwUNceN8U6Cne
o2MwYTAdBgNVHQ4EFgQUjK8LbmQDRhpY0w549wanfv7nZrcwHwYDVR0jBBgwFoAU
jK8LbmQDRhpY0w549wanfv7nZrcwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8E
BAMCAQYwCgYIKoZIzj0EAwIDSAAwRQIhAP4Et98OsILGreP+WAIxiQpMiM4Tj3A/
qgCefUMNTB6HAiA9kJDfMCTVN2ivKLSkz2qH89wUUoc6wfDQgl69ApyHqA==
-----END CERTIFICATE-----
"""
"""The authority that signed what follows."""

OTHER_AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBnjCCAUSgAwIBAgITXr9KkgiKZ+MLNX/1KyTJVzpJ1zAKBggqhkjOPQQDAjAc
MRowGAYDVQQDDBFhbm90aGVyIGF1dGhvcml0eTAgFw0yNjExMjAxNzQ2MTVaGA8y
MTI2MTAyNzE3NDYxNVowHDEaMBgGA1UEAwwRYW5vdGhlciBhdXRob3JpdHkwWTAT
BgcqhkjOPQIBBggqhkjOPQMBBwNCAATfGO3YazDnufILci1nMrwGH8Z94aoGNMdi
IPk5QrxMg9ZGC2vLOuQjd3X0172cp6AjsD7W+JevD7nNyQ7bqEm8o2MwYTAdBgNV
HQ4EFgQU5PtN5zFE4wsTXOEpyqgvThQhK0EwHwYDVR0jBBgwFoAU5PtN5zFE4wsT
XOEpyqgvThQhK0EwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwCgYI
KoZIzj0EAwIDSAAwRQIgWpYZYlMduU82X1LXoCKz3tUY9FDGpniuLT9yVnGu/lwC
IQD7tR2HnyLVMn1+u8iwgTMq3Y/4i9mGMzXvQm2GMtF2tA==
-----END CERTIFICATE-----
"""
"""One that signed nothing."""

SERVER = """\
-----BEGIN CERTIFICATE-----
MIIBxjCCAW2gAwIBAgIUJJ1ZH6sScoEc3h1C5dtjlVqHqo8wCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVdm9sbWlnIHRlc3QgYXV0aG9yaXR5MCAXDTI2MTEyMDE3NDYx
NloYDzIxMjYxMDI3MTc0NjE2WjAaMRgwFgYDVQQDDA9zdG9yYWdlLmV4YW1wbGUw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATqympROBgzNTWU82/RtJTACXDfU3/C
KI/lWuosUq5k8pUO2kzECDda1TBF5MKT03S1U0WPjjzcJWUui3zrXXT/o4GIMIGF
MB0GA1UdDgQWBBTAB9nV7LKv2rTMpfiqFXxcwUofpDAfBgNVHSMEGDAWgBSMrwtu
ZANGGljTDnj3Bqd+/udmtzAMBgNVHRMBAf8EAjAAMCAGA1UdEQQZMBeHBH8AAAGC
D3N0b3JhZ2UuZXhhbXBsZTATBgNVHSUEDDAKBggrBgEFBQcDATAKBggqhkjOPQQD
AgNHADBEAiB/tA6AnB5i7zLlamIZgedfxXe016yv4M01JszxMauTQwIgVY4eElBS
WEJj/bS39u78K/HQz1uPx1TGAQOuA+mEnJ0=
-----END CERTIFICATE-----
"""
"""For ``storage.example`` and 127.0.0.1."""

SERVER_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGZkmj1HMEdfkvRwY
c7yuSbISnGrd+8Muglg9Eh0aE6qhRANCAATqympROBgzNTWU82/RtJTACXDfU3/C
KI/lWuosUq5k8pUO2kzECDda1TBF5MKT03S1U0WPjjzcJWUui3zrXXT/
-----END PRIVATE KEY-----
"""

CLIENT = """\
-----BEGIN CERTIFICATE-----
MIIBoDCCAUagAwIBAgIUVhKPrMSn+Rfbv03enahWO6VOcxkwCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVdm9sbWlnIHRlc3QgYXV0aG9yaXR5MCAXDTI2MTEyMDE3NDYx
NloYDzIxMjYxMDI3MTc0NjE2WjAXMRUwEwYDVQQDDAxob3N0LmV4YW1wbGUwWTAT
BgcqhkjOPQIBBggqhkjOPQMBBwNCAAQw5OQVMSD2UYrWWIqiw7+GmN/rNTdJJn9K
oV0XDK5hmhk3jH8qiu3An1vhk/jsGm13GOFYFOi5ElWXS2BmiDB8o2UwYzAdBgNV
HQ4EFgQUNb7pWHfm9iwPUe6HZOMHohndrKUwHwYDVR0jBBgwFoAUjK8LbmQDRhpY
0w549wanfv7nZrcwDAYDVR0TAQH/BAIwADATBgNVHSUEDDAKBggrBgEFBQcDAjAK
BggqhkjOPQQDAgNIADBFAiEApOXbvwDYBBxCSCU+sjDky2W0/OuyE+AyVny9C8oD
FMoCIAVN1mMhgi2BXUYXrGAszoRmJae/Mqjqiw4fuJ6EmMzP
-----END CERTIFICATE-----
"""
"""For ``host.example``."""

CLIENT_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgbd/qO5nFdvzXISzk
edREph3tREnEgYMAF/K/BoG+f1yhRANCAAQw5OQVMSD2UYrWWIqiw7+GmN/rNTdJ
Jn9KoV0XDK5hmhk3jH8qiu3An1vhk/jsGm13GOFYFOi5ElWXS2BmiDB8
-----END PRIVATE KEY-----
"""

ENCRYPTED_KEY = """\
-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,CEE7A22B46A7AA8FDF2F412C3A94D81F

JYLOTVuNki7ToaEm+eFDm9Ca16HLo9BCZT8drT7GdI9stynQz7/3tG2ekVfrb36A
bBrXAeQIp28DF/20lOnqcJIEFT2+/U64TnSk6s4Ll5L2NqP8tzLS9v1GbW9l8KIq
xTKfARRDe+mdhP1i01FXg3x2mUUZJmynmJjjRmPUSDM=
-----END EC PRIVATE KEY-----
"""
"""The client's key with a password."""

REVOKED = """\
-----BEGIN X509 CRL-----
MIHkMIGKAgEBMAoGCCqGSM49BAMCMCAxHjAcBgNVBAMMFXZvbG1pZyB0ZXN0IGF1
dGhvcml0eRcNMjYxMTIwMTc0NjE2WhgPMjEyNjEwMjcxNzQ2MTZaMCcwJQIUJJ1Z
H6sScoEc3h1C5dtjlVqHqo8XDTI2MTEyMDE3NDYxNlqgDjAMMAoGA1UdFAQDAgEB
MAoGCCqGSM49BAMCA0kAMEYCIQDeAYG18UcBmwvBQ79SRkO9sonMlw5CvTBBEQ+g
U0Dd4wIhAM7cXh015MNtp/KdsRaMoKWF/xAY53rJL+PM8WbYDUNa
-----END X509 CRL-----
"""
"""A list of the authority by which the server's certificate is revoked."""


def client_directory(directory: Path, **files: str) -> Path:
    """Make a directory with a client's certificates.

    :param files: other contents, by the name of a file with ``_`` for ``-`` and without its end; empty to leave it out.
    """
    directory.mkdir()
    for name, text in ({"ca_cert": AUTHORITY, "client_cert": CLIENT, "client_key": CLIENT_KEY} | files).items():
        if text:
            path = directory / f"{name.replace('_', '-')}.pem"
            path.write_text(text)
            path.chmod(0o640)
    return directory


def server_context(directory: Path, *, verifies: bool = True) -> ssl.SSLContext:
    """Return what a server needs; *directory* is made for it."""
    directory.mkdir()
    for name, text in (("ca", AUTHORITY), ("cert", SERVER), ("key", SERVER_KEY)):
        (directory / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert", directory / "key")
    if verifies:
        context.load_verify_locations(directory / "ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context
