"""Drivers whose process is suspended at the worst moment, as with a virtual machine that is swapped out or migrated."""

from __future__ import annotations

import os
import time
from pathlib import Path

from volmig.drivers.base import MigrationHost, VolumeUpdate
from volmig.drivers.file import FileDriver
from volmig.model import RequestContext, Volume

WAIT_AT, WAIT_IN = "TEST_WAIT_AT", "TEST_WAIT_IN"
"""Names of the environment variables that say before which call to wait, once, and in which directory the files are:
``arrived``, made by the driver, and ``go``, for which it waits."""
SLOW_AFTER = "TEST_SLOW_AFTER"
"""Name of the environment variable that says after which call the storage takes its time to answer."""


def _wait_before(call: str) -> None:
    if os.environ.get(WAIT_AT) == call:
        del os.environ[WAIT_AT]
        meeting = Path(os.environ[WAIT_IN])
        (meeting / "arrived").touch()
        while not (meeting / "go").exists():
            time.sleep(0.01)


class PausedDriver(FileDriver):
    """Waits right before the effect of a call, so that its process can be suspended there, or is slow to tell of it."""

    def create_volume(self, volume: Volume) -> VolumeUpdate | None:
        _wait_before("create_volume")
        return super().create_volume(volume)

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        _wait_before("delete_object")
        super().delete_object(volume, identity)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        super().extend_volume(volume, new_size_bytes)
        if os.environ.get(SLOW_AFTER) == "extend_volume":
            time.sleep(30)

    def migrate_volume(
        self, ctxt: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate | None]:
        _wait_before("migrate_volume")
        return super().migrate_volume(ctxt, volume, host)
