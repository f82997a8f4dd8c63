"""No second call that deletes an object while an earlier one, which was given up, still runs.

It would only hang as well. And were it to succeed, the object would be taken for gone, and its name for free, while the
earlier call could yet delete whatever has taken the name.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from volmig import errors


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """What a call deletes."""

    host: str
    name: str
    identity: str | None
    """None for whatever has the name."""

    def may_be(self, other: Deletion) -> bool:
        """Say whether both may be of one object."""
        has_same_name = (self.host, self.name) == (other.host, other.name)
        return has_same_name and (self.identity == other.identity or None in (self.identity, other.identity))


class Deletions:
    """The calls of one backend's driver, in this process, that delete objects and have not ended."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._at_work: Counter[Deletion] = Counter()

    @contextlib.contextmanager
    def at_work(self, deletion: Deletion) -> Iterator[None]:
        """Count the call that is made in the context, for as long as it runs."""
        with self._lock:
            self._at_work[deletion] += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work[deletion] -= 1
                if not self._at_work[deletion]:
                    del self._at_work[deletion]

    def require_none(self, deletion: Deletion) -> None:
        """Refuse another call for the same object. :raises volmig.errors.StorageBusy:"""
        with self._lock:
            is_at_work = any(deletion.may_be(each) for each in self._at_work)
        if is_at_work:
            raise errors.StorageBusy(
                backend=self._backend,
                reason=f"an earlier deletion of {deletion.name} in {deletion.host} still runs",
            )
