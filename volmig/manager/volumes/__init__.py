"""The life of volumes other than their migration."""

from __future__ import annotations

from volmig.manager.volumes.manager import VolumeManager
from volmig.manager.volumes.values import check_size, fields_of, new_volume

__all__ = ["VolumeManager", "check_size", "fields_of", "new_volume"]
