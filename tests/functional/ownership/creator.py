"""A process that asks for a volume, and whose storage waits to be told to make it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.unit.engine.world import SOURCE, World
from volmig import errors
from volmig.model import Volume

GO = "go"
"""Name of the file that lets the storage make the object."""
SIZE = 64 * 1024
LEFT = {"driver_timeout_seconds": 0.3, "driver_retries": 0}


def open_world(directory: Path) -> World:
    """Return the storage and the records that both processes share."""
    return World(directory, kind="handle", store="sqlite", left=LEFT)


def main(directory: Path) -> None:
    world = open_world(directory)
    driver = world.fake("left")
    real = driver.create_volume

    def create(volume: Volume) -> Any:
        sys.stdout.write(f"creating {volume.id}\n")
        sys.stdout.flush()
        while not (directory / GO).exists():
            time.sleep(0.01)
        return real(volume)

    with mock.patch.object(driver, "create_volume", create):
        try:
            world.engine.create_volume(host=SOURCE, size_bytes=SIZE, name="x")
        except errors.VolmigError as error:
            sys.stdout.write(f"{error.code}\n")
            sys.stdout.flush()
        while world.engine.show_backend("left").calls_hanging:
            time.sleep(0.01)
    world.close()


if __name__ == "__main__":
    with mock.patch("volmig.manager.volumes.operations.MARGIN_SECONDS", 0.0):
        main(Path(sys.argv[1]))
