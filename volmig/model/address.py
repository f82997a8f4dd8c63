"""Addresses of pools, in the form ``host@backend#pool``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from volmig import errors

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?")
_MAX_LENGTH = 255


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PoolAddress:
    """Where volumes can be: one pool of one backend of one host.

    ``str()`` gives the form ``host@backend#pool`` and :meth:`parse` takes it back.
    """

    host: str
    """Name of the host whose service drives the backend."""
    backend: str
    """Name of the backend: its group in the configuration."""
    pool: str
    """Name of the pool; the backend's own name where the backend has no pools."""

    @classmethod
    def parse(cls, text: str) -> PoolAddress:
        """Return the address that *text* denotes.

        The first ``@`` ends the host and the first ``#`` ends the backend, so that a pool's name may hold both.

        :raises volmig.errors.AddressMalformed: naming the part that is wrong.
        """

        def refuse(reason: str) -> errors.AddressMalformed:
            return errors.AddressMalformed(address=text, reason=reason)

        if len(text) > _MAX_LENGTH:
            raise refuse(f"it is longer than {_MAX_LENGTH} characters")
        host, at, rest = text.partition("@")
        if not at:
            raise refuse("there is no '@' after the host")
        backend, hash_sign, pool = rest.partition("#")
        if not hash_sign:
            raise refuse("there is no '#' before the pool")
        for name, value in (("host", host), ("backend", backend)):
            if not _LABEL.fullmatch(value):
                raise refuse(
                    f"the {name} {value!r} is empty or has characters other than letters, digits, '_', '-' and '.'"
                )
        if not pool or pool != pool.strip() or not pool.isprintable():
            raise refuse(f"the pool {pool!r} is empty, unprintable or begins or ends with a space")
        return cls(host=host, backend=backend, pool=pool)

    def __str__(self) -> str:
        return f"{self.host}@{self.backend}#{self.pool}"
