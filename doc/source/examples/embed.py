"""Move a disk image from one directory to another: ``python embed.py DIRECTORY``."""

from __future__ import annotations

import sys
from pathlib import Path

from volmig import Engine, conf, errors


def configure(directory: Path) -> conf.Configuration:
    """Return a configuration with two backends, without any file."""
    for name in ("slow", "fast"):
        (directory / name).mkdir(exist_ok=True)
    return conf.load(
        [],
        overrides={
            "DEFAULT": {"enabled_backends": ["slow", "fast"], "host": "here", "state_path": str(directory / "state")},
            "slow": {"volume_driver": "file", "file_directory": str(directory / "slow")},
            "fast": {"volume_driver": "file", "file_directory": str(directory / "fast")},
        },
    )


def move(engine: Engine, image: Path) -> None:
    """Take over an image file and move it, telling how far it is."""
    volume = engine.manage_volume(str(image), name=image.stem)
    handle = engine.migrate(volume.id, "here@fast#fast", force_host_copy=True, verify="compare")
    for event in handle.events(interval_seconds=0.5):
        migration = event.migration
        print(migration.phase, migration.stage, migration.bytes_done, "of", migration.bytes_total)
    moved = handle.result()
    print(moved.name, "is in", moved.host, "at", engine.volume_path(moved.id))
    for entry in engine.history(handle.id):
        print(entry.sequence, entry.kind, entry.subject, dict(entry.data))


def change_of_mind(engine: Engine, name: str) -> None:
    """Begin to move a volume back at 1 MiB/s, and cancel that."""
    handle = engine.migrate(name, "here@slow#slow", force_host_copy=True, bandwidth_limit_bytes=1024**2)
    handle.cancel()
    try:
        handle.result(timeout_seconds=60)
    except errors.MigrationCancelled as error:
        print(error.code, "-", error.hint)
    print(name, "is still in", engine.show_volume(name).host)


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    with Engine(configure(place)) as opened:
        (place / "slow" / "disk.img").write_bytes(bytes(range(256)) * 4096 * 8)
        move(opened, place / "slow" / "disk.img")
        change_of_mind(opened, "disk")
