"""What the guest does in one life: recover from how the last one ended, look, and begin a migration that ends with it.

``python -m tests.power.rounds BEGINNING POINT``: BEGINNING is ``new`` for empty disks, else ``next``; POINT is a key of
:data:`POINTS`, or ``none`` to end in peace. Prints what it finds as lines of ``name=value``.

Three disks outlive the guest: one has an ext4 with the store, each of the others a volume group.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tests.vm.bench import Content, read_sha256, write
from volmig import Engine, conf
from volmig.store.sql import SqlStore
from volmig.testing.killsweep.drivers import MarkedCalls
from volmig.testing.killsweep.marks import Marks
from volmig.testing.killsweep.store import MarkedStore

MIB = 1024**2
CONTENT = Content(size_bytes=40 * MIB, seed=77)
DISKS = [f"/dev/disk/by-id/virtio-volmig-{number}" for number in range(3)]
GROUPS = ("vmpower0", "vmpower1")
STATE = Path("/run/volmig-power-state")
SLOWLY = 6 * MIB
"""Bytes a second: the copy takes some seconds, and has two checkpoints and more."""
_RECOVERY_SECONDS = 120.0

POINTS: dict[str, Callable[[str], bool]] = {
    "in the copy": lambda name: "checkpoint" in name and name.endswith(" after"),
    "before the commit": lambda name: "done cut_over" in name and name.endswith(" before"),
    "after the commit": lambda name: "done cut_over" in name and name.endswith(" after"),
    "after the renaming": lambda name: name.endswith(".update_migrated_volume after"),
}


class PowerSwitch(Marks):
    """Cuts the power at a point, as soon as it is armed."""

    def __init__(self, is_the_point: Callable[[str], bool]) -> None:
        super().__init__()
        self.is_armed = False
        self._is_the_point = is_the_point

    def reach(self, name: str) -> None:
        if self.is_armed and self._is_the_point(name):
            cut()


def cut() -> NoReturn:
    """End the machine at once: no file system is written back, no process is told."""
    Path("/proc/sysrq-trigger").write_text("b")
    while True:
        time.sleep(1)


def run(*command: str) -> str:
    """Run a program to its end; return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def prepare() -> None:
    """Make what is on the disks."""
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", DISKS[0])
    for group, disk in zip(GROUPS, DISKS[1:], strict=True):
        run("vgcreate", "-q", "-y", "-s", "1m", group, disk)


def attach() -> None:
    """Do what a system does when it starts."""
    run("vgchange", "-q", "-ay", *GROUPS)
    STATE.mkdir()
    # The file system writes when somebody asks it to, and not by chance in time.
    run("mount", "-o", "commit=300,noatime", DISKS[0], str(STATE))


def configuration() -> conf.Configuration:
    """Return the configuration, the same in each life."""
    overrides: dict[str, dict[str, object]] = {
        "DEFAULT": {"enabled_backends": list(GROUPS), "host": "here", "state_path": str(STATE)},
        "migration": {"lease_seconds": 10.0, "heartbeat_seconds": 0.5, "cleanup_delay_seconds": 0.1},
    }
    for group in GROUPS:
        overrides[group] = {"volume_driver": "lvm", "lvm_volume_group": group}
    return conf.load([], overrides=overrides)


def tell(name: str, value: object) -> None:
    """Print a fact for the host."""
    sys.stdout.write(f"{name}={value}\n")
    sys.stdout.flush()


def recover(engine: Engine) -> None:
    """Recover until nothing is under way, as a service does."""
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while unfinished := [each for each in engine.list_migrations() if not each.phase.is_final]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not recovered: {unfinished}")
        for handle in engine.recover():
            handle.wait(_RECOVERY_SECONDS)
        time.sleep(0.3)
    engine.recover()


def look(engine: Engine, store: MarkedStore) -> None:
    """Tell where the volume is, what it holds, and what else there is."""
    (volume,) = engine.list_volumes()
    path = engine.volume_path(volume.id)
    lvs = {group: run("lvs", "--noheadings", "-o", "lv_name", group).split() for group in GROUPS}
    with store.reading() as view:
        tell("reservations", len(list(view.list_reservations())))
        tell("retired", len(list(view.list_retired())))
        tell("checkpoints", len(list(view.list_checkpoints())))
    tell("place", volume.host)
    tell("status", volume.status.value)
    tell("name", volume.backend_name)
    tell("objects", ";".join(f"{group}/{name}" for group, names in lvs.items() for name in names))
    tell("digest", read_sha256(path, volume.size_bytes))
    tell("findings", [str(finding) for finding in engine.examine(grace_seconds=0).findings])
    tell("migrations", ",".join(each.phase.value for each in reversed(engine.list_migrations())))


def live(is_new: bool, point: str) -> None:
    """Live one life."""
    if is_new:
        prepare()
    attach()
    switch = PowerSwitch(POINTS.get(point, lambda _: False))
    settings = configuration()
    MarkedCalls(switch).mark_drivers(settings)
    store = MarkedStore(SqlStore(f"sqlite:///{STATE}/volmig.db"), switch)
    try:
        with Engine(settings, store=store) as engine:
            if is_new:
                volume = engine.create_volume(host=f"here@{GROUPS[0]}#{GROUPS[0]}", size_bytes=CONTENT.size_bytes)
                write(engine.volume_path(volume.id), CONTENT.data)
                tell("written", CONTENT.sha256)
            else:
                recover(engine)
            look(engine, store)
            if point != "none":
                (volume,) = engine.list_volumes()
                there = next(group for group in GROUPS if group not in volume.host)
                switch.is_armed = True
                tell("going", there)
                handle = engine.migrate(volume.id, f"here@{there}#{there}", bandwidth_limit_bytes=SLOWLY)
                ended = handle.wait(300)
                tell("survived", f"{ended.phase.value}: {ended.error_message}")
    finally:
        store.close()
    run("umount", str(STATE))


if __name__ == "__main__":
    live(sys.argv[1] == "new", sys.argv[2])
