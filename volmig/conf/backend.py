"""Options that every backend's group has, whatever its driver."""

from __future__ import annotations

from oslo_config import cfg

OPTIONS = (
    cfg.StrOpt(
        "volume_driver",
        help="The driver: name of an entry point in volmig.drivers, or module.path:ClassName. Required.",
    ),
    cfg.StrOpt(
        "volume_backend_name",
        help="Name under which the backend reports itself; its group's name when not set.",
    ),
    cfg.FloatOpt(
        "driver_timeout_seconds",
        default=300.0,
        min=0.1,
        max=86400.0,
        help="How long a call of the driver may take, other than migrate_volume.",
    ),
    cfg.FloatOpt(
        "driver_migrate_timeout_seconds",
        default=86400.0,
        min=0.1,
        max=30 * 86400.0,
        help="How long the driver's own migrate_volume may take.",
    ),
)
