"""Cancelling and pausing copies of real size from another process: how soon it is so, and what is left."""

from __future__ import annotations

import hashlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional.cli_support import MIB, REPOSITORY, environment, pattern, until
from volmig import Engine
from volmig import conf as configuration
from volmig.model import Migration, Phase, Volume

SIZE = 192 * MIB
SOURCE, DESTINATION = "here@alpha#alpha", "here@beta#beta"
CANCEL_SECONDS = 2.0
"""What the documentation promises."""

_WORKER = "import sys; from volmig.cmd.worker import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Site:
    """Two backends, an engine that asks, and workers of their own processes, with the default settings."""

    directory: Path
    engine: Engine
    volume: Volume
    digest: str

    def begin(self, *, limit: int) -> tuple[Migration, subprocess.Popen[bytes]]:
        migration = self.engine.request_migration(
            self.volume.id, DESTINATION, force_host_copy=True, bandwidth_limit_bytes=limit
        )
        return migration, self.work(migration)

    def work(self, migration: Migration) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", _WORKER, "--config-file", str(self.directory / "conf"), "--", migration.id]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(arguments, cwd=REPOSITORY, env=environment(), stderr=log)

    def objects(self, backend: str) -> list[Path]:
        return [path for path in (self.directory / backend).iterdir() if not path.name.startswith(".")]

    def assert_whole(self, backend: str) -> None:
        (path,) = self.objects(backend)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == self.digest
        assert self.objects("beta" if backend == "alpha" else "alpha") == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf").write_text(
        "[DEFAULT]\nenabled_backends = alpha, beta\nhost = here\n"
        f"state_path = {tmp_path}/state\n"
        + "".join(f"[{name}]\nvolume_driver = file\nfile_directory = {tmp_path / name}\n" for name in ("alpha", "beta"))
    )
    with Engine(configuration.load([str(tmp_path / "conf")])) as engine:
        volume = engine.create_volume(host=SOURCE, size_bytes=SIZE, name="data")
        data = pattern(SIZE)
        Path(engine.volume_path(volume.id)).write_bytes(data)
        yield Site(tmp_path, engine, volume, hashlib.sha256(data).hexdigest())


def stage(name: str, done: int) -> Callable[[Migration], bool]:
    return lambda migration: migration.stage == name and migration.bytes_done >= done


def test_cancelled_within_two_seconds(site: Site, measured: Callable[[str], None]) -> None:
    took = []
    chance = random.Random(5)
    for _ in range(5):
        migration, worker = site.begin(limit=48 * MIB)
        reached = stage("copy", chance.randrange(1, SIZE // 2))
        until(lambda: reached(site.engine.show_migration(migration.id)), "the copy is under way")  # noqa: B023
        asked = time.monotonic()
        site.engine.cancel_migration(migration.id)
        until(lambda: site.engine.show_migration(migration.id).phase is Phase.CANCELLED, "it is cancelled")  # noqa: B023
        took.append(time.monotonic() - asked)
        # At once, and not after some more clearing up.
        site.assert_whole("alpha")
        worker.wait(30)
    measured(f"cancelled after {', '.join(f'{seconds:.2f}' for seconds in took)} s")
    # Of several, since a busy machine may hold up one of them.
    assert statistics.median(took) < CANCEL_SECONDS


def test_paused_by_one_process_and_resumed_by_another(site: Site, measured: Callable[[str], None]) -> None:
    migration, worker = site.begin(limit=32 * MIB)
    reached = stage("copy", 100 * MIB)
    until(lambda: reached(site.engine.show_migration(migration.id)), "most is copied")
    asked = time.monotonic()
    site.engine.pause_migration(migration.id)
    until(lambda: site.engine.show_migration(migration.id).phase is Phase.PAUSED, "it is paused")
    took = time.monotonic() - asked
    until(lambda: worker.poll() is not None, "its worker has ended", 30)
    site.engine.limit_migration(migration.id, 0)
    site.engine.request_resume(migration.id)
    second = site.work(migration)
    assert second.wait(60) == 0
    assert site.engine.show_migration(migration.id).phase is Phase.SUCCESS
    site.assert_whole("beta")
    (copied,) = (e for e in site.engine.history(migration.id) if (e.kind.value, e.subject) == ("done", "copy"))
    measured(f"paused after {took:.2f} s; {copied.data['bytes_resumed'] // MIB} MiB were not copied again")
    assert copied.data["bytes_resumed"] >= 64 * MIB
