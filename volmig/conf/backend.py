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
        help="How long a call of the driver may take, other than migrate_volume. Each repetition has that time anew.",
    ),
    cfg.FloatOpt(
        "driver_migrate_timeout_seconds",
        default=86400.0,
        min=0.1,
        max=30 * 86400.0,
        help="How long the driver's own migrate_volume may take.",
    ),
    cfg.DictOpt(
        "driver_call_timeouts",
        default={},
        help="Times for calls of single methods of the driver, in seconds, in place of driver_timeout_seconds and "
        "driver_migrate_timeout_seconds: create_volume:900, delete_volume:1800.",
    ),
    cfg.IntOpt(
        "driver_retries",
        default=3,
        min=0,
        max=100,
        help="How often a call is repeated when the storage fails it for the moment: the driver raises StorageBusy, or "
        "the system says EAGAIN, EBUSY, EINTR or ETIMEDOUT. Calls that cannot be repeated safely are not, and one that "
        "did not end in its time is not, since it still runs.",
    ),
    cfg.FloatOpt(
        "driver_retry_delay_seconds",
        default=0.5,
        min=0.0,
        max=300.0,
        help="Pause before the first repetition. It doubles with each further one, up to 60 seconds or this pause, and "
        "up to a quarter is taken off at random.",
    ),
)
