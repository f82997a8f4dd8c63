"""Options in ``[DEFAULT]``."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from oslo_config import cfg

GROUP = "DEFAULT"


def default_state_path() -> str:
    """Return where volmig keeps its state unless told otherwise: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return "/var/lib/volmig"
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return str(Path(base) / "volmig")


OPTIONS = (
    cfg.ListOpt(
        "enabled_backends",
        default=[],
        help="Names of the backends to drive. Each is also the name of a group with the backend's options.",
    ),
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<this machine's host name>",
        help="Name of this host in pool addresses (host@backend#pool). Volumes are recorded under it, so "
        "keep it when the machine is renamed.",
    ),
    cfg.StrOpt(
        "state_path",
        default=default_state_path(),
        sample_default="/var/lib/volmig, or ~/.local/state/volmig for a user other than root",
        help="Directory of volmig's own files. Made when absent.",
    ),
)
