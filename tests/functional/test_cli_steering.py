"""Pausing, resuming, slowing down, going back and recovering, as processes on real files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .cli_support import MIB, SLOW, Cli, make_cli, until, worker_of

SIZE = 24 * MIB + 4097
WORDS = ("volume", "migrate", "--force-host-copy", "v", "here@beta#beta")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = make_cli(tmp_path)
    text = cli.config.read_text()
    cli.config.write_text(text.replace("[migration]\n", "[migration]\nrecovery_interval_seconds = 0.2\n"))
    return cli


def content(cli: Cli, backend: str) -> list[bytes]:
    return [file.read_bytes() for file in cli.files(backend)]


def assert_moved(cli: Cli, data: bytes) -> None:
    assert content(cli, "beta") == [data]
    assert content(cli, "alpha") == []
    record = cli.json("volume", "show", "v")
    assert (record["host"], record["status"], record["migration_status"]) == ("here@beta#beta", "available", "success")


def ended(process_id: int) -> bool:
    """Say whether a process is gone; its parent, an earlier command, has ended before it."""
    stat = Path(f"/proc/{process_id}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_background_migration_is_paused_and_goes_on_in_another_worker(cli: Cli) -> None:
    _, data = cli.filled("v", SIZE)
    cli(*WORDS, "--limit", SLOW)
    moving = cli.moving("v")
    migration_id = moving["id"]
    with cli.running("migration", "watch", migration_id) as watching:
        paused = cli("migration", "pause", "--wait", migration_id)
        assert "It is paused." in paused.stderr
        until(lambda: ended(worker_of(moving)), "its worker has ended")
        record = cli.migration(migration_id)
        assert (record["phase"], record["worker"]) == ("paused", "none")
        assert record["pause_requested_by"]
        assert cli.json("volume", "show", "v")["migration_status"] == "migrating"
        assert [row["id"] for row in cli.json("migration", "list", "--phase", "paused")] == [migration_id]
        assert cli.json("migration", "recover") == []
        assert cli.migration(migration_id)["phase"] == "paused"
        limited = cli("migration", "limit", migration_id, "0")
        assert "that holds when it goes on" in limited.stderr
        resumed = cli("migration", "resume", migration_id)
        assert "runs in the background" in resumed.stderr
        out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "paused" in out
    assert f"migration resume {migration_id}" in out
    assert out.splitlines()[-1] == "success"
    assert_moved(cli, data)
    shown = cli("migration", "show", "--history", migration_id).stdout
    for kind, subject in (("request", "pause"), ("phase", "paused"), ("request", "resume"), ("request", "limit")):
        assert any(line.split()[1:3] == [kind, subject] for line in shown.splitlines() if line[:2] == "20"), subject
    assert "asked for it" in shown


def test_one_that_runs_here_waits_while_somebody_else_pauses_it(cli: Cli) -> None:
    _, data = cli.filled("v", SIZE)
    with cli.running(*WORDS, "--wait", "--limit", SLOW) as moving:
        migration_id = cli.moving("v")["id"]
        cli("migration", "pause", "--wait", migration_id)
        time.sleep(0.5)
        assert moving.poll() is None
        cli("migration", "limit", migration_id, "0")
        cli("migration", "resume", "--wait", migration_id)
        _, told = moving.communicate(timeout=60)
    assert moving.returncode == 0
    assert "Paused, as" in told
    assert f"migration resume {migration_id}" in told
    assert_moved(cli, data)


def test_a_paused_one_is_cancelled_by_the_command_that_waits_for_it(cli: Cli) -> None:
    _, data = cli.filled("v", SIZE)
    with cli.running(*WORDS, "--wait", "--limit", SLOW) as moving:
        migration_id = cli.moving("v")["id"]
        cli("migration", "pause", "--wait", migration_id)
        moving.send_signal(signal.SIGINT)
        _, told = moving.communicate(timeout=30)
    assert moving.returncode == 130
    assert "[migration-cancelled]" in told
    assert content(cli, "alpha") == [data]
    assert content(cli, "beta") == []


def test_the_limit_of_a_running_migration_is_taken_away(cli: Cli) -> None:
    _, data = cli.filled("v", SIZE)
    cli(*WORDS, "--limit", "1MiB")
    migration_id = cli.moving("v")["id"]
    began = time.monotonic()
    changed = cli("migration", "limit", migration_id, "0")
    assert "its worker follows" in changed.stderr
    cli("migration", "watch", migration_id)
    assert time.monotonic() - began < 30  # under the limit it takes 24 seconds to copy, and as long to verify
    assert cli.migration(migration_id)["bandwidth_limit_bytes"] == 0
    assert_moved(cli, data)
    for words in (("limit", migration_id, "1MiB"), ("resume", migration_id)):
        assert "[migration-ended]" in cli("migration", *words, check=2).stderr
    assert "[pause-impossible]" in cli("migration", "pause", migration_id, check=2).stderr


def test_a_change_of_the_name_outlasts_a_migration(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    cli(*WORDS, "--limit", SLOW)
    migration_id = cli.moving("v")["id"]
    changed = cli.json("volume", "set", "v", "--name", "w", "--property", "a=b")
    assert (changed["name"], changed["metadata"]) == ("w", {"a": "b"})
    cli("migration", "limit", migration_id, "0")
    cli("migration", "watch", migration_id)
    record = cli.json("volume", "show", volume["id"])
    assert (record["name"], record["metadata"], record["host"]) == ("w", {"a": "b"}, "here@beta#beta")
    assert content(cli, "beta") == [data]


def test_a_volume_goes_back_to_its_old_storage(cli: Cli) -> None:
    _, data = cli.filled("v", 3 * MIB + 1)
    migration_id = cli.json(*WORDS, "--wait", "--retain", "1h")["id"]
    shown = cli("migration", "show", migration_id)
    assert "is kept until" in shown.stderr
    assert f"migration rollback {migration_id}" in shown.stderr
    [old], [new] = cli.files("alpha"), cli.files("beta")
    with new.open("r+b") as file:
        file.write(b"written since")
    refused = cli("migration", "rollback", "--wait", migration_id, check=2)
    assert "[changes-would-be-lost]" in refused.stderr
    assert cli.json("volume", "show", "v")["host"] == "here@beta#beta"
    new.write_bytes(data)
    cli("migration", "rollback", migration_id)
    rollback = cli.json("migration", "list", "--volume", "v", "--long")[0]
    assert (rollback["method"], rollback["rolls_back"]) == ("rollback", migration_id)
    cli("migration", "watch", rollback["id"])
    assert (cli.files("alpha"), old.read_bytes()) == ([old], data)
    assert cli.files("beta") == []
    assert cli.json("volume", "show", "v")["host"] == "here@alpha#alpha"
    assert cli.migration(migration_id)["source_kept_until"] is None
    assert "[rollback-impossible]" in cli("migration", "rollback", migration_id, check=2).stderr


def test_changes_are_discarded_when_that_is_asked_for(cli: Cli) -> None:
    _, data = cli.filled("v", MIB)
    migration_id = cli.json(*WORDS, "--wait", "--retain", "1h")["id"]
    cli.files("beta")[0].write_bytes(bytes(MIB))
    done = cli("migration", "rollback", "--wait", "--discard-changes", migration_id)
    assert "Volume v is back at here@alpha#alpha." in done.stderr
    assert content(cli, "alpha") == [data]
    # What is given up can be had back as long.
    assert content(cli, "beta") == [bytes(MIB)]
    rollback = cli.json("migration", "list", "--volume", "v", "--long")[0]["id"]
    assert cli.migration(rollback)["source_kept_until"] is not None
    cli("migration", "retire", rollback)
    assert content(cli, "beta") == []


def test_the_old_storage_is_deleted_before_its_time(cli: Cli) -> None:
    _, data = cli.filled("v", MIB)
    migration_id = cli.json(*WORDS, "--wait", "--retain", "7d")["id"]
    assert content(cli, "alpha") == [data]
    assert cli("migration", "recover").returncode == 0
    assert content(cli, "alpha") == [data]
    assert "is deleted" in cli("migration", "retire", migration_id).stderr
    assert_moved(cli, data)
    assert cli.migration(migration_id)["source_kept_until"] is None
    assert "[nothing-retained]" in cli("migration", "retire", migration_id, check=2).stderr
    assert "[rollback-impossible]" in cli("migration", "rollback", migration_id, check=2).stderr


def stop(service: subprocess.Popen[Any], signals: int = 1) -> str:
    for _ in range(signals):
        service.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    _, told = service.communicate(timeout=60)
    return str(told)


def test_a_service_takes_over_and_deletes_what_is_due(cli: Cli) -> None:
    _, data = cli.filled("v", SIZE)
    started = cli.json(*WORDS, "--limit", "16MiB", "--retain", "1s")
    with cli.running("migration", "recover", "--keep") as service:
        os.kill(worker_of(cli.moving("v")), signal.SIGKILL)
        until(lambda: cli.migration(started["id"])["phase"] == "success", "it was taken over")
        until(lambda: cli.files("alpha") == [], "the old storage was deleted")
        told = stop(service)
    assert service.returncode == 0
    assert "recovering" in told
    assert f"migration {started['id']}" in told
    assert "Traceback" not in told
    assert_moved(cli, data)


def test_a_service_that_is_told_to_stop_leaves_its_copy_to_another(cli: Cli) -> None:
    _, data = cli.filled("v", SIZE)
    started = cli.json(*WORDS, "--limit", "1MiB")
    os.kill(worker_of(cli.moving("v")), signal.SIGKILL)
    with cli.running("migration", "recover", "--keep") as service:
        until(lambda: cli.migration(started["id"])["owner"].split(":")[1:2] == [str(service.pid)], "it was taken over")
        told = stop(service)
    assert service.returncode == 0
    assert "letting go of the migrations that run here" in told
    assert "Traceback" not in told
    left = cli.migration(started["id"])
    assert (left["phase"], left["owner"]) == ("migrating", "")
    cli("migration", "limit", started["id"], "0")
    with cli.running("migration", "recover", "--keep") as other:
        until(lambda: cli.migration(started["id"])["phase"] == "success", "another went on")
        stop(other)
    assert cli.migration(started["id"])["destination_id"] == left["destination_id"]
    assert_moved(cli, data)


def test_a_service_that_has_nothing_to_do_ends_at_once(cli: Cli) -> None:
    with cli.running("migration", "recover", "--keep") as service:
        assert service.stderr is not None
        assert "recovering" in service.stderr.readline()
        began = time.monotonic()
        service.send_signal(signal.SIGINT)
        out, _ = service.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert (service.returncode, out) == (0, "")
