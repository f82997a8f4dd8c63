"""``volmig doctor``: what it shows, what its commands settle, and what its exit status says."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import uuid
from pathlib import Path

import pytest

from tests.functional.cli_support import MIB, SLOW, Cli, interrupt, make_cli, until, worker_of

ALPHA, BETA = "here@alpha#alpha", "here@beta#beta"
WARNINGS, CRITICAL = 10, 11
SLOWLY = ("--wait", "--force-host-copy", "--limit", SLOW)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    made = make_cli(tmp_path)
    made("backend", "list")
    return made


def doctor(cli: Cli, *words: str, check: int) -> list[dict[str, object]]:
    done = cli("doctor", *words, "--grace", "0", "--long", "-f", "json", check=check)
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def run(cli: Cli, command: object) -> None:
    """Run a command as it was shown, which has the configuration in it."""
    program, option, config, *words = shlex.split(str(command))
    assert (program, option, config) == ("volmig", "--config-file", str(cli.config))
    cli(*words)


def test_nothing_to_find(cli: Cli) -> None:
    cli.filled("one", MIB)
    done = cli("doctor")
    assert done.stderr.splitlines() == [
        "Nothing was found.",
        "1 volume on record, 1 object in 3 backends.",
    ]
    assert doctor(cli, check=0) == []
    assert cli("--quiet", "doctor").stderr == ""


def test_missing_volume_is_critical_until_it_is_put_back(cli: Cli) -> None:
    volume, data = cli.filled("one", MIB)
    [file] = cli.files("alpha", volume["id"])
    file.unlink()
    [row] = doctor(cli, check=CRITICAL)
    assert (row["severity"], row["code"], row["what"]) == ("critical", "volume-missing", volume["id"])
    assert (row["where"], row["safe"], row["outcome"]) == (ALPHA, False, "")
    run(cli, row["command"])
    # Nothing that could be lost is done about it.
    assert len(doctor(cli, "--fix", check=CRITICAL)) == 1
    file.write_bytes(data)
    assert doctor(cli, check=0) == []


def test_every_format_and_the_explanation_for_people(cli: Cli) -> None:
    volume, _ = cli.filled("one", MIB)
    [file] = cli.files("alpha", volume["id"])
    file.write_bytes(b"short")
    table = cli("doctor", check=CRITICAL)
    assert "size-differs" in table.stdout
    assert f"critical: size-differs: {volume['id']}" in table.stdout
    assert f"volmig --config-file {cli.config} volume show {volume['id']}" in table.stdout
    assert table.stderr == "1 finding: 1 critical.\n"
    rows = list(csv.DictReader(io.StringIO(cli("doctor", "--long", "-f", "csv", check=CRITICAL).stdout)))
    assert "cut off" in rows[0]["explanation"]
    assert cli("doctor", "-f", "value", "-c", "code", check=CRITICAL).stdout == "size-differs\n"
    assert "code: size-differs" in cli("doctor", "-f", "yaml", check=CRITICAL).stdout


def test_abandoned_migration_is_settled_by_the_command(cli: Cli) -> None:
    volume, data = cli.filled("one", 32 * MIB)
    with cli.running("volume", "migrate", volume["id"], BETA, *SLOWLY) as process:
        migration = cli.moving(volume["id"])
        assert doctor(cli, check=0) == []
        os.kill(worker_of(migration), signal.SIGKILL)
        process.wait(30)
    rows = doctor(cli, check=WARNINGS)
    assert {row["code"] for row in rows} <= {"migration-abandoned", "helper-running"}
    until(lambda: "the lease has not been renewed" in str(doctor(cli, check=WARNINGS)), "the lease runs out")
    [row] = [row for row in doctor(cli, check=WARNINGS) if row["code"] == "migration-abandoned"]
    run(cli, row["command"])
    assert doctor(cli, check=0) == []
    [file] = cli.files("beta")
    assert file.read_bytes() == data


def test_fix_deletes_a_leftover_and_nothing_else(cli: Cli) -> None:
    volume, data = cli.filled("one", 4 * MIB)
    with cli.running("volume", "migrate", volume["id"], BETA, *SLOWLY) as process:
        migration = cli.moving(volume["id"])
        interrupt(process)
        process.wait(60)
    assert cli.files("beta") == []
    leftover = cli.directory / "beta" / f"volume-{migration['destination_id']}"
    leftover.write_bytes(b"half a copy")
    unknown = cli.directory / "beta" / f"volume-{uuid.uuid4()}"
    unknown.write_bytes(b"the only copy" * 100)
    (cli.directory / "beta" / "photo.img").write_bytes(b"a stranger's" * 100)
    rows = doctor(cli, check=WARNINGS)
    assert [(row["code"], row["safe"]) for row in rows] == [
        ("leftover-copy", True),
        ("unknown-object", False),
        ("foreign-object", False),
    ]
    done = cli("doctor", "--fix", "--grace", "0", "-f", "json", check=WARNINGS)
    assert done.stderr == "2 findings: 1 warning, 1 info left; 1 was mended.\n"
    assert [(row["code"], row["outcome"]) for row in json.loads(done.stdout)] == [
        ("unknown-object", ""),
        ("foreign-object", ""),
        ("leftover-copy", "it is deleted"),
    ]
    assert not leftover.exists()
    assert unknown.read_bytes() == b"the only copy" * 100
    run(cli, rows[1]["command"])
    assert [row["code"] for row in doctor(cli, check=0)] == ["foreign-object"]
    run(cli, rows[2]["command"])
    assert doctor(cli, check=0) == []
    assert cli.files("alpha", volume["id"])[0].read_bytes() == data


def test_backend_that_is_down_is_told_and_the_others_are_examined(cli: Cli) -> None:
    volume, _ = cli.filled("one", MIB)
    (cli.directory / "alpha").rename(cli.directory / "away")
    [row] = doctor(cli, check=WARNINGS)
    assert (row["code"], row["where"]) == ("backend-down", "here@alpha")
    assert doctor(cli, "--backend", "beta", check=0) == []
    assert doctor(cli, "--volume", volume["id"], check=0) == []


@pytest.mark.parametrize(
    ("words", "status"),
    [(("--backend", "none"), 2), (("--volume", "none"), 2), (("--grace", "-1"), 2), (("-c", "none"), 2)],
)
def test_wrong_requests(cli: Cli, words: tuple[str, ...], status: int) -> None:
    assert cli("doctor", *words, check=status).stdout == ""
