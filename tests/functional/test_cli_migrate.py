"""``volume migrate`` and ``migration …`` as processes: here and in the background, watched, cancelled and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from volmig.cli import background
from volmig.cli.app import main

from .cli_support import MIB, SLOW, Cli, environment, make_cli, read_terminal, terminal, worker_of

SIZE = 24 * MIB + 4097


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return make_cli(tmp_path)


def assert_untouched(cli: Cli, volume: dict[str, Any], data: bytes) -> None:
    """Check that the volume is whole at its source, free, and that nothing is left at the destination."""
    [file] = cli.files("alpha", volume["id"])
    assert file.read_bytes() == data
    assert cli.files("beta") == []
    record = cli.json("volume", "show", volume["id"])
    assert (record["host"], record["status"]) == ("here@alpha#alpha", "available")
    assert record["migration_id"] is None
    assert cli.json("pool", "list", "--long")[1]["reserved_bytes"] == 0


def assert_moved(cli: Cli, volume: dict[str, Any], data: bytes) -> None:
    [file] = cli.files("beta", volume["id"])
    assert file.read_bytes() == data
    assert cli.files("alpha") == []
    record = cli.json("volume", "show", volume["id"])
    assert (record["host"], record["status"], record["migration_status"]) == ("here@beta#beta", "available", "success")


def test_with_wait_the_record_is_the_output_and_the_progress_is_beside_it(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "v", "here@beta#beta", "-f", "json")
    done = cli(*words)
    record = json.loads(done.stdout)
    assert record["phase"] == "success"
    assert record["source_digest"] == record["destination_digest"] != ""
    assert done.stderr.splitlines()[-1] == "success"
    assert_moved(cli, volume, data)
    assert cli("-q", *words[:-2], check=2).stderr.count("\n") == 2


def test_without_wait_a_worker_moves_it(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    done = cli("volume", "migrate", "--force-host-copy", "v", "here@beta#beta", "-f", "value", "-c", "id")
    migration_id = done.stdout.strip()
    follow = f"volmig --config-file {cli.config} migration watch {migration_id}"
    assert follow in done.stderr
    watched = cli("migration", "watch", migration_id)
    assert "success" in watched.stdout
    assert "is at here@beta#beta" in watched.stderr
    assert_moved(cli, volume, data)
    log = cli.directory / "state" / "log" / f"migration-{migration_id}.log"
    assert "succeeded" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_the_driver_s_way_and_another_driver_s_pool(cli: Cli) -> None:
    _, data = cli.filled("v", 3 * MIB + 1)
    renamed = cli.json("volume", "migrate", "--wait", "v", "here@beta#beta")
    assert renamed["method"] == "driver"
    copied = cli.json("volume", "migrate", "--wait", "v", "here@gamma#pool-b", "--verify", "compare", "--lock-volume")
    assert copied["method"] in ("block", "file")
    assert copied["verify"] == "compare"
    assert copied["lock_volume"] is True
    back = cli.json("volume", "migrate", "--wait", "v", "here@alpha#alpha", "--engine", "dd")
    assert back["engine"] == "dd"
    [file] = cli.files("alpha")
    assert file.read_bytes() == data


def test_refusals_come_at_once_and_start_no_worker(cli: Cli) -> None:
    cli.filled("v", MIB)
    assert "[same-pool]" in cli("volume", "migrate", "v", "here@alpha#alpha", check=2).stderr
    assert "[pool-not-found]" in cli("volume", "migrate", "v", "here@beta#x", check=2).stderr
    assert cli.json("migration", "list") == []
    assert not (cli.directory / "state" / "log").exists()


def test_a_running_migration_is_seen_watched_and_cancelled_by_others(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    started = cli.json("volume", "migrate", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    with cli.running("migration", "watch", started["id"]) as watching:
        moving = cli.moving("v")
        assert moving["bandwidth_limit_bytes"] == 4 * MIB
        assert 0 < moving["bytes_done"] < moving["bytes_total"]
        assert "[already-migrating]" in cli("volume", "migrate", "v", "here@gamma#pool-a", check=2).stderr
        cancelled = cli.json("migration", "cancel", "--wait", started["id"])
        assert cancelled["phase"] == "cancelled"
        out, told = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert "migrating (copy)" in out
    assert out.splitlines()[-1] == "cancelled"
    assert "[migration-cancelled]" in told
    assert_untouched(cli, volume, data)
    assert "[cancel-too-late]" in cli("migration", "cancel", started["id"], check=2).stderr


def test_leaving_a_watch_leaves_the_migration_alone(cli: Cli) -> None:
    cli.filled("v", SIZE)
    started = cli.json("volume", "migrate", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    with cli.running("migration", "watch", started["id"]) as watching:
        cli.moving("v")
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert "migration goes on" in told
    assert cli.migration(started["id"])["phase"] == "migrating"
    assert cli.json("migration", "cancel", "--wait", started["id"])["phase"] == "cancelled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_cancels_and_waits_until_it_is_undone(cli: Cli, number: int) -> None:
    volume, data = cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    with cli.running(*words) as moving:
        migration = cli.moving("v")
        began = time.monotonic()
        moving.send_signal(number)
        out, told = moving.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert moving.returncode == 130
    assert out == ""
    assert "Cancelling" in told
    assert "[migration-cancelled]" in told
    assert "Traceback" not in told
    assert cli.migration(migration["id"])["phase"] == "cancelled"
    assert_untouched(cli, volume, data)


def test_the_worker_cancels_cleanly_when_it_is_told_to_end(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    started = cli.json("volume", "migrate", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    os.kill(worker_of(cli.moving("v")), signal.SIGTERM)
    assert "[migration-cancelled]" in cli("migration", "watch", started["id"], check=130).stderr
    assert_untouched(cli, volume, data)


def test_a_migration_whose_worker_was_killed_is_cancelled_by_the_command(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    started = cli.json("volume", "migrate", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    os.kill(worker_of(cli.moving("v")), signal.SIGKILL)
    time.sleep(2.2)  # the lease in the tests' configuration
    assert cli.json("migration", "cancel", "--wait", started["id"])["phase"] == "cancelled"
    assert_untouched(cli, volume, data)


def test_a_migration_whose_worker_was_killed_is_recovered(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    cli.json("volume", "migrate", "--force-host-copy", "--limit", "16MiB/s", "v", "here@beta#beta")
    os.kill(worker_of(cli.moving("v")), signal.SIGKILL)
    time.sleep(2.2)
    [recovered] = cli.json("migration", "recover")
    assert recovered["phase"] in ("success", "error")
    if recovered["phase"] == "success":
        assert_moved(cli, volume, data)
    else:
        assert_untouched(cli, volume, data)


def test_a_command_that_was_killed_leaves_a_migration_that_is_told_as_abandoned(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", "16MiB/s", "v", "here@beta#beta")
    with cli.running(*words) as moving:
        migration_id = cli.moving("v")["id"]
        assert cli.migration(migration_id)["worker"] == "running"
        with cli.running("migration", "watch", migration_id) as watching:
            moving.kill()
            moving.wait(timeout=30)
            _, told = watching.communicate(timeout=30)
    # The one that watched as it happened, and one that comes later.
    for status, said in ((watching.returncode, told), (4, cli("migration", "watch", migration_id, check=4).stderr)):
        assert status == 4
        assert "[migration-abandoned]" in said
        assert "volmig migration recover" in said
        assert "Traceback" not in said
    shown = cli.migration(migration_id)
    assert re.fullmatch(r"gone since 20\d\d-.*Z", shown["worker"])
    assert (shown["rate_bytes"], shown["eta_seconds"]) == (None, None)
    listed = cli("migration", "list", "--long", "-f", "json")
    assert json.loads(listed.stdout)[0]["worker"] == shown["worker"]
    assert "migration recover" in listed.stderr
    [recovered] = cli.json("migration", "recover")
    assert (recovered["id"], recovered["phase"]) == (migration_id, "success")
    assert cli.migration(migration_id)["worker"] == ""
    assert_moved(cli, volume, data)
    assert cli.json("migration", "recover") == []


def test_a_migration_continues_when_nobody_reads_its_progress(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", "16MiB/s", "v", "here@beta#beta")
    with cli.running(*words) as moving:
        assert moving.stderr is not None
        assert moving.stderr.readline()
        moving.stderr.close()
        assert moving.stdout is not None
        out = moving.stdout.read()
        moving.wait(timeout=60)
    assert moving.returncode == 0
    assert "success" in out
    assert_moved(cli, volume, data)


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_a_bar(cli: Cli, no_color: bool) -> None:
    cli.filled("v", SIZE)
    changes = {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    shown = Cli(cli.directory, env=environment(**changes))
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", "16MiB/s", "v", "here@beta#beta")
    with terminal() as (ours, theirs), shown.running(*words, "-f", "json", stderr=theirs) as moving:
        os.close(theirs)
        text = read_terminal(ours, moving)
        out, _ = moving.communicate(timeout=30)
    assert moving.returncode == 0, text
    assert json.loads(out)["phase"] == "success"
    assert re.search(r"copy .*━", text)
    assert re.search(r"verify .*━", text)
    assert "MiB/s" in text
    assert "100 %" in text
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) is not no_color


def test_ctrl_c_on_a_terminal_cancels(cli: Cli) -> None:
    volume, data = cli.filled("v", SIZE)
    shown = Cli(cli.directory, env=environment(TERM="xterm"))
    words = ("volume", "migrate", "--wait", "--force-host-copy", "--limit", SLOW, "v", "here@beta#beta")
    with terminal() as (ours, theirs), shown.running(*words, stderr=theirs, start_new_session=True) as moving:
        os.close(theirs)
        cli.moving("v")
        moving.send_signal(signal.SIGINT)
        text = read_terminal(ours, moving)
        moving.communicate(timeout=30)
    assert moving.returncode == 130
    assert "Cancelling" in text
    assert "[migration-cancelled]" in text
    assert_untouched(cli, volume, data)


def test_a_worker_that_dies_at_once_is_reported_and_the_volume_is_free(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, data = cli.filled("v", MIB)
    dying = [sys.executable, "-c", "import sys; print('volmig: it cannot be [x]'); sys.exit(3)"]
    monkeypatch.setattr(background, "worker_arguments", lambda *_: dying)
    assert main(["--config-file", str(cli.config), "volume", "migrate", "v", "here@beta#beta"]) == 5
    told = capsys.readouterr().err
    assert "[worker-failed]" in told
    assert "status 3: volmig: it cannot be [x]" in told
    [migration] = cli.json("migration", "list")
    assert migration["phase"] == "cancelled"
    assert_untouched(cli, volume, data)


def test_a_worker_that_cannot_be_started_is_reported_and_the_volume_is_free(cli: Cli) -> None:
    volume, data = cli.filled("v", MIB)
    (cli.directory / "state" / "log").write_text("not a directory")
    done = cli("volume", "migrate", "v", "here@beta#beta", check=5)
    assert "[worker-failed]" in done.stderr
    assert_untouched(cli, volume, data)


def test_the_worker_refuses_what_it_cannot_run(cli: Cli) -> None:
    cli.filled("v", MIB)
    done_id = cli.json("volume", "migrate", "--wait", "v", "here@beta#beta")["id"]

    def worker(*words: str) -> int:
        arguments = [sys.executable, "-m", "volmig.cmd.worker", *words]
        return subprocess.run(arguments, env=cli.env, capture_output=True, timeout=60).returncode

    assert worker("--config-file", str(cli.config), "nosuch") == 2
    assert worker("--config-file", str(cli.config), done_id) == 4
    assert worker("--config-file", "/nonexistent.conf", done_id) == 3
    assert worker() == 2
