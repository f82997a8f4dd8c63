"""Workers that are suspended or killed, storage that is not mounted, and a store that vanishes: with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .cli_support import MIB, SLOW, Cli, environment, make_cli, until
from .hostile_drivers import SLOW_AFTER, WAIT_AT, WAIT_IN

SIZE = 4 * MIB + 4097
LEASE_SECONDS = 2.2
"""A little more than the lease in the tests' configuration."""
ALPHA, BETA = "here@alpha#alpha", "here@beta#beta"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    made = make_cli(tmp_path)
    driver = "tests.functional.hostile_drivers:PausedDriver\ndriver_timeout_seconds = 2"
    text = made.config.read_text().replace("volume_driver = file\n", f"volume_driver = {driver}\n")
    made.config.write_text(text)
    return made


def suspend(cli: Cli, process: subprocess.Popen[str]) -> None:
    """Stop a worker for longer than its lease, but not while it holds the lock of the store."""

    def is_stopped() -> bool:
        process.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stops")
        store = sqlite3.connect(cli.directory / "state" / "volmig.db", timeout=0.1, isolation_level=None)
        with contextlib.closing(store):
            try:
                store.execute("BEGIN IMMEDIATE")
                store.execute("ROLLBACK")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                return False
            return True

    until(is_stopped, "the worker is stopped outside of a transaction")
    time.sleep(LEASE_SECONDS)


@contextlib.contextmanager
def suspended(cli: Cli, call: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a migration that is suspended right before a call of the driver."""
    waiting = replace(cli, env=environment(**{WAIT_AT: call, WAIT_IN: str(cli.directory)}))
    with waiting.running("volume", "migrate", "--wait", *words, "v", BETA) as process:
        until((cli.directory / "arrived").exists, f"the worker is about to call {call}")
        suspend(cli, process)
        (cli.directory / "go").touch()
        yield process


def wake_up(process: subprocess.Popen[str]) -> str:
    """Let a suspended worker go on until its end; return what it said."""
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said
    return said


def assert_whole(cli: Cli, volume: dict[str, Any], data: bytes, backend: str) -> None:
    other = {"alpha": "beta", "beta": "alpha"}[backend]
    record = cli.json("volume", "show", volume["id"])
    assert (record["host"], record["status"]) == (f"here@{backend}#{backend}", "available")
    [file] = cli.files(backend)
    assert file.read_bytes() == data
    assert cli.files(other) == []


def test_a_worker_that_was_suspended_in_a_deletion(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    with suspended(cli, "delete_object", "--force-host-copy") as process:
        assert [each["phase"] for each in cli.json("migration", "recover")] == ["success"]
        assert cli.json("volume", "migrate", "--wait", "--force-host-copy", "v", ALPHA)["phase"] == "success"
        wake_up(process)
    assert_whole(cli, volume, data, "alpha")


def test_a_worker_that_was_suspended_in_a_creation(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    with suspended(cli, "create_volume", "--force-host-copy") as process:
        [active] = cli.json("migration", "list", "--active")
        assert cli.json("migration", "cancel", "--wait", active["id"])["phase"] == "cancelled"
        wake_up(process)

    def is_cleared_up() -> bool:
        cli("migration", "recover")
        return cli.files("beta") == []

    until(is_cleared_up, "what it made is removed")
    assert_whole(cli, volume, data, "alpha")


def test_a_worker_that_was_suspended_in_the_driver_s_own_move(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    with suspended(cli, "migrate_volume") as process:
        [active] = cli.json("migration", "list", "--active")
        cli("migration", "cancel", "--wait", active["id"], check=None)
        wake_up(process)
    cli("migration", "recover")
    record = cli.json("volume", "show", volume["id"])
    assert_whole(cli, volume, data, record["host"].rpartition("#")[2])


def test_a_worker_that_was_suspended_in_a_copy(cli: Cli) -> None:
    """Another one has ended the migration, and the volume is in use when the first wakes up."""
    cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", SLOW, "v", BETA)
    with cli.running(*words) as process:
        cli.moving("v")
        suspend(cli, process)
        assert [each["phase"] for each in cli.json("migration", "recover")] == ["success"]
        [file] = cli.files("beta")
        with file.open("r+b") as opened:
            opened.write(b"N" * SIZE)
        wake_up(process)
    assert [file.read_bytes().strip(b"N") for file in cli.files("beta")] == [b""]
    assert cli.files("alpha") == []


def test_an_extension_that_was_killed(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    [file] = cli.files("alpha")
    slow = replace(cli, env=environment(**{SLOW_AFTER: "extend_volume"}))
    with slow.running("volume", "extend", "v", f"{2 * SIZE}B") as process:
        until(lambda: file.stat().st_size == 2 * SIZE, "the file has grown")
        process.kill()
    assert cli.json("volume", "show", "v")["status"] == "extending"
    assert cli.json("volume", "extend", "v", f"{2 * SIZE}B")["status"] == "available"
    assert cli.json("volume", "migrate", "--wait", "v", BETA)["phase"] == "success"
    assert_whole(cli, volume, data + bytes(SIZE), "beta")


def test_a_store_that_is_removed_while_a_volume_moves(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", SLOW, "v", BETA)
    with cli.running(*words) as process:
        cli.moving("v")
        shutil.rmtree(cli.directory / "state")
        _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "[database-unusable]" in said
    [file] = cli.files("alpha", volume["id"])
    assert file.read_bytes() == data


# --- storage that is not mounted ----------------------------------------------------------------

INSIDE = """
import json, subprocess, sys
from pathlib import Path

root = Path(sys.argv[1])
disk, mounted = root / "disk", root / "beta"

def mount():
    subprocess.run(["mount", "--bind", str(disk), str(mounted)], check=True)

def unmount():
    subprocess.run(["umount", str(mounted)], check=True)

def volmig(*arguments):
    command = [sys.executable, "-m", "volmig.cli", "--config-file", str(root / "volmig.conf"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [done.returncode, done.stdout, done.stderr]

mount()
found = {"create": volmig("volume", "create", "--host", "here@beta#beta", "--size", "1MiB", "--name", "b")}
[file] = mounted.glob("volume-*")
data = b"precious" * 2**17
file.write_bytes(data)
unmount()
found["create-a"] = volmig("volume", "create", "--host", "here@alpha#alpha", "--size", "1MiB", "--name", "a")
found["down"] = volmig("backend", "list", "-f", "json")
found["delete"] = volmig("volume", "delete", "b")
found["migrate"] = volmig("volume", "migrate", "--wait", "a", "here@beta#beta")
found["away"] = volmig("volume", "migrate", "--wait", "b", "here@alpha#alpha")
found["below"] = sorted(path.name for path in mounted.iterdir())
mount()
found["same"] = file.read_bytes() == data
found["again"] = volmig("volume", "migrate", "--wait", "--force-host-copy", "b", "here@alpha#alpha", "-f", "json")
found["arrived"] = (root / "alpha" / file.name).read_bytes() == data
unmount()
print(json.dumps(found))
"""


def test_storage_that_is_not_mounted(tmp_path: Path) -> None:
    cli = make_cli(tmp_path)
    (tmp_path / "disk").mkdir()
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *user, sys.executable, "-c", INSIDE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=cli.env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    states = {backend["name"]: backend["state"] for backend in json.loads(found["down"][1])}
    assert (states["alpha"], states["beta"]) == ("up", "down")
    for refused in ("delete", "migrate", "away"):
        assert found[refused][0] == 4, found[refused]
        assert "[backend-down]" in found[refused][2]
    assert found["below"] == []
    assert found["same"] is True
    assert found["again"][0] == 0, found["again"]
    assert json.loads(found["again"][1])["phase"] == "success"
    assert found["arrived"] is True
