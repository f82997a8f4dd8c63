"""Secrets of the hosts that attach volumes.

They are derived from a key of the backend, so that nothing secret is in the store and the answer is always the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from volmig import errors

_DIRECTORY = Path("/var/lib/volmig")
_KEY_BYTES = 32


def key_file(option: str, backend: str) -> Path:
    """Return where the key of a backend is.

    :param option: value of ``target_secret_file``.
    """
    # A backend's name is a group of the configuration file, and may hold anything.
    return Path(option) if option else _DIRECTORY / f"target-{re.sub(r'[^A-Za-z0-9_-]', '_', backend)}.key"


def load_key(path: Path, *, backend: str) -> bytes:
    """Return the key in a file; make it, for its owner alone, when it is missing.

    :raises volmig.errors.BackendSetupFailed: when it cannot be made or read, or others can read it.
    """
    try:
        _make(path)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(file.fileno())
            key = file.read(_KEY_BYTES + 1)
    except OSError as error:
        raise _unusable(backend, path, error.strerror or str(error)) from error
    if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
        raise _unusable(backend, path, "others than its owner can use it; its mode must be 0600")
    if found.st_uid not in (os.geteuid(), 0):
        raise _unusable(backend, path, f"it belongs to the user {found.st_uid}")
    if len(key) != _KEY_BYTES:
        raise _unusable(backend, path, f"it does not hold {_KEY_BYTES} bytes")
    return key


def secret_of(key: bytes, *parts: str) -> str:
    """Return the secret that belongs to *parts*: 32 hexadecimal digits, 128 bits."""
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:32]


def _make(path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Whole or not at all, and never in place of one that another process has made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unusable(backend: str, path: Path, reason: str) -> errors.BackendSetupFailed:
    return errors.BackendSetupFailed(backend=backend, reason=f"the key file {path} cannot be used: {reason}")
