"""Move a disk image, keep its old storage, and go back to it: ``python going_back.py DIRECTORY``."""

from __future__ import annotations

import sys
from pathlib import Path

from embed import configure

from volmig import Engine, errors


def move_and_go_back(engine: Engine, name: str) -> None:
    """Move a volume, write to it, and bring it back to what it was."""
    moved = engine.migrate(name, "here@fast#fast", force_host_copy=True, source_retention_seconds=3600)
    moved.result()
    with Path(engine.volume_path(name)).open("r+b") as file:
        file.write(b"written since")
    try:
        engine.rollback_migration(moved.id).result()
    except errors.ChangesWouldBeLost as error:
        print(error.code, "-", error.message)
    back = engine.rollback_migration(moved.id, discard_changes=True).result()
    print(back.name, "is back in", back.host)


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    with Engine(configure(place)) as opened:
        opened.keep_recovering()
        (place / "slow" / "disk.img").write_bytes(bytes(range(256)) * 4096)
        opened.manage_volume(str(place / "slow" / "disk.img"), name="disk")
        move_and_go_back(opened, "disk")
