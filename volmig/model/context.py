"""Who asks for something."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestContext:
    """The origin of a request; drivers get it as ``ctxt``."""

    user: str = ""
    """Who asked: a user's name or id; recorded in the history."""
    project_id: str | None = None
    request_id: str = field(default_factory=lambda: f"req-{uuid.uuid4()}")
    """Ties log lines of one request together."""

    @property
    def actor(self) -> str:
        """What the history names as the origin: the user, or the request where no user is known."""
        return self.user or self.request_id
