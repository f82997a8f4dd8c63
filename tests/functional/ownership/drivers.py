"""A driver that holds the first call of a kind, so that its process can be suspended right there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from volmig.drivers.base import ConnectorProperties, MigrationHost, VolumeUpdate
from volmig.drivers.file import FileDriver
from volmig.model import RequestContext, Volume

GATES = "gates"
"""Name of the directory beside the pools in which the files are that say where to wait."""
ARRIVED, GO = "arrived", "go"
BEFORE_COMMIT = "before the commit"


class HeldDriver(FileDriver):
    """Waits before or after the effect of a call when there is a file that says so; only the first to come waits."""

    def _wait(self, place: str) -> None:
        gates = Path(self.options["file_directory"]).parent / GATES
        try:
            (gates / place).rename(gates / ARRIVED)
        except FileNotFoundError:
            return
        while not (gates / GO).exists():
            time.sleep(0.01)

    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        self._wait("before create_volume")
        update = super().create_volume(volume)
        self._wait("after create_volume")
        return update

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        self._wait("before delete_object")
        super().delete_object(volume, identity)
        self._wait("after delete_object")

    def migrate_volume(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        self._wait("before migrate_volume")
        answer = super().migrate_volume(ctxt, volume, host)
        self._wait("after migrate_volume")
        return answer

    def update_migrated_volume(
        self, ctxt: RequestContext, volume: Volume, new_volume: Volume, original_volume_status: str
    ) -> VolumeUpdate:
        self._wait("before update_migrated_volume")
        update = super().update_migrated_volume(ctxt, volume, new_volume, original_volume_status)
        self._wait("after update_migrated_volume")
        self._is_renamed = True
        return update

    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> Any:
        super().terminate_connection(volume, connector)
        if getattr(self, "_is_renamed", False):
            # The last call before the transaction that switches the volume over.
            self._wait(BEFORE_COMMIT)
