"""Backend drivers, and the contract that they fulfil."""

from volmig.drivers.base import (
    INTERFACE_VERSION,
    Capability,
    ConnectionInfo,
    ConnectorProperties,
    MigrationHost,
    PoolStats,
    StoredObject,
    VolumeDriver,
    VolumeStats,
    VolumeUpdate,
)

__all__ = [
    "INTERFACE_VERSION",
    "Capability",
    "ConnectionInfo",
    "ConnectorProperties",
    "MigrationHost",
    "PoolStats",
    "StoredObject",
    "VolumeDriver",
    "VolumeStats",
    "VolumeUpdate",
]
