"""Volumes that are attached through their own exports, and what must not be left of that."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.connectors.host import host_properties
from volmig.drivers.targets import exporter
from volmig.drivers.targets.base import Exporter
from volmig.drivers.targets.options import target_options
from volmig.model import Volume

from .bench import Bench, Content, bench, write
from .support import Group, logical_volumes, run, volume_group

CONTENT = Content(size_bytes=8 * 1024**2, seed=11, hole_bytes=1024**2)
SLOWLY = 2 * 1024**2
"""Bytes a second of a copy in whose middle something is to happen."""
VERY_SLOWLY = 128 * 1024
"""And of one in whose middle a program is to be started, which takes seconds under emulation."""
_CONFIGFS = Path("/sys/kernel/config")

MIGRATE = """
import sys
from volmig import conf
from volmig.engine import Engine
from volmig.store.sql import SqlStore

file, store, volume, host, limit = sys.argv[1:]
with Engine(conf.load([file]), store=SqlStore(store)) as engine:
    engine.migrate(volume, host, bandwidth_limit_bytes=int(limit)).result(600)
"""


@dataclass(frozen=True, kw_only=True)
class Yard:
    """A volume on a group that is attached by exports only, and a group that it moves to."""

    bench: Bench
    root: Path
    left: Group
    right: Group
    volume: Volume

    def killed_in_the_middle(self, connected: Callable[[], object]) -> None:
        """Migrate in a process of its own, and kill that when it has copied some, with its connection standing."""
        state = self.root / "state"
        arguments = (
            str(state / "volmig.conf"),
            f"sqlite:///{state}/volmig.db",
            self.volume.id,
            "here@right#" + self.right.name,
        )
        process = subprocess.Popen([sys.executable, "-c", MIGRATE, *arguments, str(SLOWLY)], start_new_session=True)
        try:
            wait(lambda: any(each.bytes_done > 0 for each in self._migrations()) or process.poll() is not None)
            assert process.poll() is None, "the migration ended before it was killed"
            assert connected()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def fails_and_leaves_nothing(self) -> None:
        """Migrate, which must fail for the export, and delete the volume, which nothing may hold then."""
        engine = self.bench.engine
        with pytest.raises(errors.ExportFailed):
            engine.migrate(self.volume.id, "here@right#" + self.right.name).result(600)
        assert targets() == []
        engine.delete_volume(self.volume.id)
        assert engine.list_volumes() == []

    def found_and_deleted_with_its_export(self, protocol: str) -> None:
        """Leave an export as a process that was killed does, which the doctor finds; it goes with the volume."""
        engine, backend_id = self.bench.engine, self.volume.backend_id
        device = str(self.left.device(self.volume.backend_name))
        exporter = make_exporter(self.root, protocol, backend="left")
        exporter.connection(backend_id, device, here())
        [found] = engine.examine(grace_seconds=0.0).findings
        assert (found.code, found.what, found.safe) == ("export-stale", self.volume.id, True)
        [mended] = engine.mend([found], grace_seconds=0.0)
        assert mended.done, mended.outcome
        assert targets() == []
        exporter.connection(backend_id, device, here())
        engine.delete_volume(self.volume.id)
        assert (targets(), engine.list_volumes()) == ([], [])

    def _migrations(self) -> list[Any]:
        with self.bench.store.reading() as view:
            return list(view.list_migrations())


@contextlib.contextmanager
def yard(root: Path, protocol: str, **more: Any) -> Iterator[Yard]:
    """Give two volume groups, of which the first is reached by *protocol* only, also from this host.

    :param more: further options of the first.
    """
    key = root / "key"
    exported: dict[str, Any] = {"target_protocol": protocol, "export_to_own_host": "true", "target_secret_file": key}
    exported |= more
    with volume_group(size_bytes=48 * 1024**2) as left, volume_group(size_bytes=48 * 1024**2) as right:
        backends: dict[str, dict[str, Any]] = {
            "left": {"volume_driver": "lvm", "lvm_volume_group": left.name, **exported},
            "right": {"volume_driver": "lvm", "lvm_volume_group": right.name},
        }
        leases: dict[str, Any] = {"lease_seconds": 6.0, "heartbeat_seconds": 1.0, "cleanup_delay_seconds": 0.1}
        with bench(root / "state", backends, chunk_bytes=65536, **leases) as made:
            volume = made.engine.create_volume(host=f"here@left#{left.name}", size_bytes=CONTENT.size_bytes)
            write(left.device(volume.backend_name), CONTENT.data)
            yield Yard(bench=made, root=root, left=left, right=right, volume=volume)


def assert_refused_after_a_write_on_its_host(place: Yard) -> None:
    """Migrate, write a block to the logical volume itself in the middle of the copy, and see that refused."""
    device = place.left.device(place.volume.backend_name)
    handle = place.bench.engine.migrate(
        place.volume.id, f"here@right#{place.right.name}", bandwidth_limit_bytes=VERY_SLOWLY
    )
    wait(lambda: handle.status().bytes_done > 0 or handle.status().phase.is_final)
    # What it held before, so that it can be compared; not flushed, and the target has the device open: it stays in the
    # cache for now.
    run("dd", f"of={device}", "bs=4096", "count=1", "conv=notrunc,nocreat", stdin=CONTENT.data[:4096])
    assert handle.status().stage == "copy", "the copy had ended before"
    handle.limit(0)
    with pytest.raises(errors.SourceChanged, match=re.escape(str(device))):
        handle.result(600)
    place.bench.assert_stayed(place.volume, f"left#{place.left.name}", CONTENT)
    assert logical_volumes(place.right) == []


def make_exporter(root: Path, protocol: str, backend: str = "b") -> Exporter:
    """Return an exporter for a device of the test's own."""
    options = {option.dest: option.default for option in target_options()}
    made = exporter(
        options | {"target_protocol": protocol, "target_secret_file": str(root / "key")}, backend=backend, host="here"
    )
    assert made is not None
    return made


def here() -> Any:
    """Return how this host is told of."""
    return host_properties("here")


def targets() -> list[str]:
    """Return what is left of targets, of any kind, in the kernel."""
    patterns = (
        "target/iscsi/iqn.*",
        "target/core/iblock_20261/iqn.*",
        "nvmet/subsystems/*volume*",
        "nvmet/ports/*",
        "nvmet/hosts/*",
    )
    return sorted(str(path) for pattern in patterns for path in _CONFIGFS.glob(pattern))


def node_records() -> list[str]:
    """Return what open-iscsi remembers of targets."""
    return sorted(path.name for path in Path("/etc/iscsi/nodes").glob("*"))


def wait(condition: Callable[[], object], seconds: float = 240.0) -> None:
    """Wait until something holds; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


@contextlib.contextmanager
def iscsid() -> Iterator[None]:
    """Run open-iscsi's daemon."""
    Path("/run/lock/iscsi").mkdir(parents=True, exist_ok=True)
    subprocess.run(["modprobe", "iscsi_tcp"], check=True)
    process = subprocess.Popen(["iscsid", "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # Without it the first question is answered with 20: no connection to the daemon.
        wait(lambda: "@ISCSIADM_ABSTRACT_NAMESPACE" in Path("/proc/net/unix").read_text(), 60)
        yield
    finally:
        process.kill()
        process.wait()


def log_command_lines(program: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put something before a program that logs each of its command lines; return the log."""
    real, log = shutil.which(program), directory / f"{program}.log"
    assert real is not None, f"{program} is not installed"
    before = directory / "before"
    before.mkdir()
    (before / program).write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nexec {real} "$@"\n')
    (before / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{before}:{os.environ['PATH']}")
    return log


class CommandLines:
    """Collects command lines of all processes while it is entered, as far as they last long enough to be seen."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for entry in Path("/proc").iterdir():
                # A process may end while it is looked at.
                if entry.name.isdecimal():
                    with contextlib.suppress(OSError):
                        self.seen.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
