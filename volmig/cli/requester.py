"""Who asks, as recorded in the history."""

from __future__ import annotations

import os
import pwd

from volmig.model import RequestContext


def requester() -> RequestContext:
    """Return the context of a request by the user that runs this process."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = f"uid {os.geteuid()}"
    return RequestContext(user=user)
