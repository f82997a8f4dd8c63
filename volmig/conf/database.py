"""Options in ``[database]``."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "database"

OPTIONS = (
    cfg.StrOpt(
        "connection",
        default="sqlite:///$state_path/volmig.db",
        secret=True,
        help="SQLAlchemy URL of the database that records volumes and migrations.",
    ),
    cfg.FloatOpt(
        "busy_timeout_seconds",
        default=30.0,
        min=0.1,
        max=3600.0,
        help="How long a write waits for its turn before it fails with store-busy.",
    ),
)
