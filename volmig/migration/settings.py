"""How migrations are run: the values of the configuration, as an argument."""

from __future__ import annotations

from dataclasses import dataclass

from oslo_config import cfg


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """See :mod:`volmig.conf.migration` and :mod:`volmig.conf.transfer` for the meaning of each."""

    max_concurrent_migrations: int
    lease_seconds: float
    heartbeat_seconds: float
    cleanup_attempts: int
    cleanup_delay_seconds: float
    chunk_bytes: int
    check_image_headers: bool = True
    source_retention_seconds: int = 0
    recovery_interval_seconds: float = 60.0

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> Settings:
        """Take the values from a checked configuration."""
        return cls(
            max_concurrent_migrations=conf.migration.max_concurrent_migrations,
            lease_seconds=conf.migration.lease_seconds,
            heartbeat_seconds=conf.migration.heartbeat_seconds,
            cleanup_attempts=conf.migration.cleanup_attempts,
            cleanup_delay_seconds=conf.migration.cleanup_delay_seconds,
            chunk_bytes=conf.transfer.chunk_bytes,
            check_image_headers=conf.transfer.check_image_headers,
            source_retention_seconds=conf.migration.source_retention_seconds,
            recovery_interval_seconds=conf.migration.recovery_interval_seconds,
        )
