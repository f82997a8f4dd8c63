"""Options in ``[migration]``."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "migration"

OPTIONS = (
    cfg.IntOpt(
        "max_concurrent_migrations",
        default=8,
        min=1,
        max=1024,
        help="How many migrations one process runs at once; further ones wait in phase queued.",
    ),
    cfg.FloatOpt(
        "lease_seconds",
        default=30.0,
        min=2.0,
        max=3600.0,
        help="How long a worker owns a migration without renewing. After a worker died, its migrations are taken over "
        "when this time has passed.",
    ),
    cfg.FloatOpt(
        "heartbeat_seconds",
        default=0.5,
        min=0.05,
        max=60.0,
        help="How often a running migration records its progress, renews its lease and looks for a request to "
        "cancel. At most a third of lease_seconds.",
    ),
    cfg.FloatOpt(
        "recovery_interval_seconds",
        default=60.0,
        min=0.1,
        max=86400.0,
        help="How often a process that recovers (`volmig migration recover --keep`, or Engine.keep_recovering) looks "
        "for migrations and requests whose process is gone, and for old storage that is due to be deleted.",
    ),
    cfg.IntOpt(
        "source_retention_seconds",
        default=0,
        min=0,
        max=10 * 365 * 86400,
        help="How long the old storage of a migrated volume is kept, so that the migration can be rolled back. It "
        "takes its room in its pool until then. 0 deletes it at once.",
    ),
    cfg.IntOpt(
        "cleanup_attempts",
        default=5,
        min=1,
        max=100,
        help="How often a step of a rollback, or the deletion of a volume's old storage, is tried before it is left "
        "on record for later.",
    ),
    cfg.FloatOpt(
        "cleanup_delay_seconds",
        default=0.5,
        min=0.0,
        max=300.0,
        help="Pause before the second of these attempts; it doubles with each further one.",
    ),
)
