"""Every command but the migrations, as a process on real files."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .cli_support import MIB, Cli, environment, make_cli, pattern


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A command line whose store has two volumes and a finished migration, for commands that only look."""
    cli = make_cli(tmp_path_factory.mktemp("looking"))
    cli("volume", "create", "--host", "here@alpha#alpha", "--size", "3MiB", "--name", "web", "--property", "k=v")
    cli("volume", "create", "--host", "here@gamma#pool-a", "--size", "1000B", "--name", "db", "--project", "p")
    cli("volume", "migrate", "--wait", "web", "here@beta#beta")
    return cli


@pytest.fixture
def fresh(tmp_path: Path) -> Cli:
    return make_cli(tmp_path)


VOLATILE = ("free_capacity_bytes", "available_bytes")
"""What changes between two commands, since the file system has other users."""

LISTS = (["backend", "list"], ["pool", "list"], ["volume", "list"], ["migration", "list"])


@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_lists_parse_in_every_format(cli: Cli, words: list[str]) -> None:
    rows = cli.json(*words, "--long")
    assert len(rows) >= 1
    for row, same in zip(rows, yaml.safe_load(cli(*words, "--long", "-f", "yaml").stdout), strict=True):
        assert row.keys() == same.keys()
        assert all(row[name] == same[name] for name in row if name not in VOLATILE)
    table = list(csv.DictReader(io.StringIO(cli(*words, "--long", "-f", "csv").stdout)))
    assert [list(row) for row in table] == [list(row) for row in rows]
    first = next(iter(rows[0]))
    values = cli(*words, "-f", "value", "-c", first).stdout.splitlines()
    assert values == [str(row[first]) for row in rows]
    shown = cli(*words).stdout
    assert shown.startswith("+--")
    assert str(rows[0][first]) in shown


def test_shows_parse_in_every_format(cli: Cli) -> None:
    migration_id = cli.json("migration", "list")[0]["id"]
    for words in (["backend", "show", "alpha"], ["volume", "show", "web"], ["migration", "show", migration_id]):
        record = cli.json(*words)
        assert yaml.safe_load(cli(*words, "-f", "yaml").stdout) == record
        assert cli(*words, "-f", "value", "-c", next(iter(record))).stdout.strip() == next(iter(record.values()))
        assert cli(*words).stdout.startswith("+--")
        assert f'{next(iter(record))}="' in cli(*words, "-f", "shell").stdout


def test_sizes_are_bytes_for_programs_and_readable_for_people(cli: Cli) -> None:
    volume = cli.json("volume", "show", "web")
    assert volume["size_bytes"] == 3 * MIB
    assert volume["metadata"] == {"k": "v"}
    assert "3 MiB" in cli("volume", "list").stdout
    assert "1000 B" in cli("volume", "list").stdout
    pool = cli.json("pool", "list", "--long")[0]
    assert pool["address"] == "here@alpha#alpha"
    assert pool["state"] == "up"
    assert 0 < pool["available_bytes"] <= pool["total_capacity_bytes"]


def test_lists_filter_and_page(cli: Cli) -> None:
    def names(*options: str) -> list[str]:
        return [row["name"] for row in cli.json("volume", "list", *options)]

    assert names() == ["web", "db"]
    assert names("--name", "db") == ["db"]
    assert names("--host", "here@beta") == ["web"]
    assert names("--project", "p") == ["db"]
    assert names("--status", "error") == []
    first = cli.json("volume", "list", "--limit", "1")
    assert [row["name"] for row in first] == ["web"]
    assert names("--marker", first[0]["id"]) == ["db"]
    assert len(cli.json("migration", "list", "--volume", "web", "--phase", "success")) == 1
    assert cli.json("migration", "list", "--active") == []


def test_the_history_stands_in_the_record_and_below_the_table(cli: Cli) -> None:
    migration_id = cli.json("migration", "list")[0]["id"]
    assert "history" not in cli.json("migration", "show", migration_id)
    history = cli.json("migration", "show", migration_id, "--history")["history"]
    phases = [entry["subject"] for entry in history if entry["kind"] == "phase"]
    assert phases[0] == "queued"
    assert phases[-1] == "success"
    assert all(entry["at"] and entry["actor"] for entry in history)
    shown = cli("migration", "show", migration_id, "--history").stdout
    lines = shown[shown.rindex("+") :].splitlines()[1:]
    assert len(lines) == len(history)
    assert "queued" in lines[0]
    only = cli("migration", "show", migration_id, "-c", "history").stdout.splitlines()
    assert only == lines


def test_a_volume_s_life(fresh: Cli) -> None:
    created = fresh.json("volume", "create", "--host", "here@alpha#alpha", "--size", "2MiB", "--name", "v")
    assert created["status"] == "available"
    assert created["host"] == "here@alpha#alpha"
    [file] = fresh.files("alpha", created["id"])
    assert file.stat().st_size == 2 * MIB
    assert fresh.json("volume", "extend", "v", "3MiB")["size_bytes"] == 3 * MIB
    assert file.stat().st_size == 3 * MIB
    deleted = fresh("volume", "delete", "v")
    assert deleted.stdout == ""
    assert "Deleted volume v." in deleted.stderr
    assert fresh.files("alpha") == []
    assert fresh.json("volume", "list") == []


def test_an_image_is_managed_moved_and_let_go(fresh: Cli) -> None:
    data = pattern(MIB + 512)
    image = fresh.directory / "alpha" / "disk.img"
    image.write_bytes(data)
    words = fresh.arguments("volume", "manage", "disk.img", "--name", "old", "--property", "a=b", "-f", "json")
    done = subprocess.run(words, cwd=image.parent, env=fresh.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    volume = json.loads(done.stdout)
    assert (volume["size_bytes"], volume["name"], volume["metadata"]) == (MIB + 512, "old", {"a": "b"})
    assert fresh("volume", "manage", str(image), check=2).stderr.splitlines()[0].endswith("[already-managed]")
    fresh("volume", "migrate", "--wait", "--force-host-copy", "old", "here@beta#beta")
    [moved] = fresh.files("beta", volume["id"])
    assert moved.read_bytes() == data
    fresh("-q", "volume", "unmanage", "old")
    assert moved.read_bytes() == data
    assert fresh.json("volume", "list") == []


REFUSALS = (
    (["volume", "show", "nosuch"], 2, "volume-not-found"),
    (["volume", "migrate", "web", "here@beta#beta"], 2, "same-pool"),
    (["volume", "migrate", "nosuch", "here@beta#beta"], 2, "volume-not-found"),
    (["volume", "migrate", "web", "here@beta#nosuch"], 2, "pool-not-found"),
    (["volume", "migrate", "web", "here@nosuch#x"], 2, "backend-not-found"),
    (["volume", "migrate", "web", "beta"], 2, "address-malformed"),
    (["volume", "migrate", "web", "here@alpha#alpha", "--limit", "50"], 2, "size-invalid"),
    (["volume", "migrate", "web", "here@alpha#alpha", "--engine", "nosuch"], 3, "plugin-not-found"),
    (["volume", "create", "--host", "here@alpha#alpha", "--size", "0"], 2, "size-invalid"),
    (["volume", "create", "--host", "here@alpha#alpha", "--size", "4096TiB"], 2, "destination-too-small"),
    (["volume", "extend", "web", "1MiB"], 2, "size-too-small"),
    (["volume", "manage", "/nonexistent/x.img"], 2, "not-manageable"),
    (["volume", "list", "--marker", "nosuch"], 2, "volume-not-found"),
    (["migration", "show", "nosuch"], 2, "migration-not-found"),
    (["migration", "watch", "nosuch"], 2, "migration-not-found"),
    (["migration", "cancel", "nosuch"], 2, "migration-not-found"),
    (["migration", "pause", "nosuch"], 2, "migration-not-found"),
    (["migration", "resume", "nosuch"], 2, "migration-not-found"),
    (["migration", "limit", "nosuch", "1MiB"], 2, "migration-not-found"),
    (["migration", "limit", "nosuch", "50"], 2, "size-invalid"),
    (["migration", "rollback", "nosuch"], 2, "migration-not-found"),
    (["migration", "retire", "nosuch"], 2, "migration-not-found"),
    (["volume", "migrate", "web", "here@alpha#alpha", "--retain", "1w"], 2, "request-invalid"),
    (["volume", "set", "web"], 2, "request-invalid"),
    (["volume", "set", "nosuch", "--name", "x"], 2, "volume-not-found"),
    (["volume", "snapshot", "create", "web"], 2, "unsupported-operation"),
    (["volume", "snapshot", "delete", "web", "nosuch"], 2, "unsupported-operation"),
    (["backend", "show", "nosuch"], 2, "backend-not-found"),
    (["volume", "frobnicate"], 2, "unknown-command"),
)


@pytest.mark.parametrize(("words", "status", "code"), REFUSALS, ids=lambda value: str(value)[:40])
def test_refusals_are_two_lines_and_a_status(cli: Cli, words: list[str], status: int | None, code: str) -> None:
    before = cli.json("volume", "list", "--long")
    done = cli(*words, check=status)
    assert done.returncode != 0
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert said[0].startswith("volmig: ")
    assert code in said[0]
    assert said[1].startswith("hint: ")
    assert len(said) == 2
    assert cli.json("volume", "list", "--long") == before


def test_a_type_that_the_driver_cannot_give_in_place_is_refused(cli: Cli) -> None:
    before = cli.json("volume", "show", "web")
    assert "[unsupported-operation]" in cli("volume", "retype", "web", "fast", check=2).stderr
    after = cli.json("volume", "show", "web")
    # The driver was asked, with the request on record meanwhile.
    assert {name: after[name] for name in before if name not in ("version", "updated_at")} == {
        name: before[name] for name in before if name not in ("version", "updated_at")
    }


def test_a_mistake_in_the_arguments_shows_the_usage(cli: Cli) -> None:
    done = cli("volume", "create", "--name", "x", check=2)
    assert "usage: volmig volume create" in done.stderr
    assert "--host" in done.stderr
    assert "--size" in done.stderr


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "config-file-unreadable"),
        ("[DEFAULT\n", "config-file-unreadable"),
        ("[DEFAULT]\nenabled_backends = x\nstate_path = {directory}/s\n", "config-option-invalid"),
        (
            "[DEFAULT]\nenabled_backends = x\nstate_path = {directory}/s\n[x]\nvolume_driver = nosuch\n",
            "plugin-not-found",
        ),
    ],
)
def test_a_wrong_configuration_has_its_own_status(tmp_path: Path, text: str | None, code: str) -> None:
    cli = Cli(tmp_path)
    if text is not None:
        cli.config.write_text(text.format(directory=tmp_path))
    done = cli("volume", "list", check=3)
    assert f"[{code}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in cli("--debug", "volume", "list", check=3).stderr


def test_later_configuration_files_win(fresh: Cli, tmp_path: Path) -> None:
    second = tmp_path / "second.conf"
    second.write_text("[DEFAULT]\nenabled_backends = beta\n")
    rows = fresh.json("--config-file", str(second), "backend", "list")
    assert [row["name"] for row in rows] == ["beta"]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", [["volume", "list"], ["--help"], ["volume", "list", "-f", "json"]])
def test_a_closed_pipe_is_silent(cli: Cli, words: list[str], buffered: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = environment() if buffered else environment(PYTHONUNBUFFERED="1")
    try:
        with Cli(cli.directory, env=env).running(*words, stdout=writing) as process:
            _, told = process.communicate(timeout=60)
    finally:
        os.close(writing)
    assert told == ""
    assert process.returncode == 141


@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_under_the_output_is_told(cli: Cli, buffered: bool) -> None:
    chosen = Cli(cli.directory, env=environment() if buffered else environment(PYTHONUNBUFFERED="1"))
    with Path("/dev/full").open("w") as full, chosen.running("volume", "list", stdout=full) as process:
        _, told = process.communicate(timeout=60)
    assert "[output-lost]" in told
    assert "Traceback" not in told
    assert process.returncode == 5


@pytest.mark.parametrize(("words", "status"), [(["volume", "list"], 0), (["volume", "show", "nosuch"], 2)])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_standard_streams_are_no_trouble(cli: Cli, closed: str, words: list[str], status: int) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *cli.arguments(*words)]
    done = subprocess.run(command, env=cli.env, timeout=60, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_names_in_any_language_do_not_break_a_plain_locale(fresh: Cli) -> None:
    fresh("volume", "create", "--host", "here@alpha#alpha", "--size", "1MiB", "--name", "größe-中")
    plain = Cli(
        fresh.directory, env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
    )
    assert "gr\\xf6\\xdfe" in plain("volume", "list").stdout
    assert plain.json("volume", "list")[0]["name"] == "größe-中"


def test_the_version_and_the_bash_completion_are_printed(cli: Cli) -> None:
    from volmig import __version__

    assert cli("--version").stdout == f"volmig {__version__}\n"
    assert "migrate" in cli("complete").stdout
