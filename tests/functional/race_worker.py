"""One process of several that ask for everything at once; each of its threads tells its requests to a file."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.unit.engine.races import Racer, race
from volmig import Engine
from volmig import conf as configuration
from volmig.drivers.fake import FakeDriver
from volmig.store.sql import SqlStore

DELAYED = ("create_volume", "extend_volume", "delete_object", "migrate_volume", "create_snapshot", "retype")


def open_engine(directory: Path, store: SqlStore) -> Engine:
    """Return an engine over the storage and the records that all processes share."""
    faults = [f"{method}:delay=0.01" for method in DELAYED]
    own: dict[str, Any] = {
        "volume_driver": "fake",
        "fake_directory": str(directory / "fake"),
        "fake_faults": faults,
        "fake_connection": "path",
    }
    overrides: dict[str, Any] = {
        "DEFAULT": {"enabled_backends": ["left", "right"], "host": "here", "state_path": str(directory / "state")},
        "migration": {"heartbeat_seconds": 0.2, "lease_seconds": 3.0},
        "left": {**own, "fake_pools": ["left"]},
        "right": {**own, "fake_pools": ["right"]},
    }
    engine = Engine(configuration.load([], overrides=overrides), store=store)
    for name in ("left", "right"):
        driver = engine._backends.get(name).driver
        assert isinstance(driver, FakeDriver)
        driver.types = {"fast", "slow"}
    return engine


def database(directory: Path) -> str:
    return f"sqlite:///{directory}/store.db"


def main(directory: Path, number: int, threads: int, count: int, volumes: list[str], hosts: list[str]) -> None:
    store = SqlStore(database(directory))
    with ExitStack() as files, open_engine(directory, store) as engine:
        racers = []
        for thread in range(threads):
            label = f"{number}-{thread}"
            file = files.enter_context((directory / f"told-{label}").open("a", buffering=1))
            racers.append(
                Racer(
                    engine,
                    volumes,
                    hosts,
                    seed=label,
                    deletes=thread == 0 and number == 0,
                    tell=lambda line, file=file: file.write(f"{line}\n"),  # type: ignore[misc]
                )
            )
        print("begun", flush=True)  # noqa: T201 - read by the test
        race(racers, count)
    store.close()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    main(Path(wanted.pop("directory")), **wanted)
