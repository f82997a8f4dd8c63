"""``volmig demo`` as a process."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .cli_support import Cli, environment, read_terminal, terminal, until

NOBODY = 65534


def identities() -> list[int | None]:
    """Return the users to run as: this one and, where that can be, one without any rights."""
    if os.geteuid() != 0:
        return [None]
    probe = [sys.executable, "-c", "import volmig, cliff, rich, sqlalchemy"]
    try:
        done = subprocess.run(probe, env=environment(), user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
    except OSError:
        return [None]
    return [None, NOBODY] if done.returncode == 0 else [None]


def demo(
    parent: Path, *words: str, user: int | None = None, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "volmig.cli", "demo", "--directory", str(parent), *words]
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    if user is not None:
        given |= {"user": user, "group": user, "extra_groups": []}
    return subprocess.Popen(arguments, env=env or environment(), stdin=subprocess.DEVNULL, **given)


@pytest.mark.parametrize("user", identities())
def test_it_moves_and_checks_and_leaves_nothing(tmp_path: Path, user: int | None) -> None:
    if user is not None:
        # The test's directory lies in one that only this user may enter.
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)
        os.chown(tmp_path, user, user)
    with demo(tmp_path, user=user) as process:
        out, told = process.communicate(timeout=90)
    assert process.returncode == 0, told
    assert told == ""
    assert list(tmp_path.iterdir()) == []
    assert out.count("every byte is as it was written") == 2
    assert "The driver renamed the file" in out
    assert "identical" in out
    assert re.search(r"phase +success", out)
    assert "\x1b" not in out
    digests = re.findall(r"digest +([0-9a-f]{64})", out)
    assert len(digests) == 2
    assert len(set(digests)) == 1
    sizes = re.findall(r"volume-\S+  256 MiB, ([0-9.]+) MiB of it allocated", out)
    assert len(sizes) == 3
    assert all(50 < float(size) < 130 for size in sizes)


def test_with_keep_it_can_be_explored(tmp_path: Path) -> None:
    with demo(tmp_path, "--keep", "--size", "5MiB") as process:
        out, told = process.communicate(timeout=90)
    assert process.returncode == 0, told
    [kept] = tmp_path.iterdir()
    assert f"volmig --config-file {kept}/volmig.conf volume list" in out
    cli = Cli(kept)
    [volume] = cli.json("volume", "list")
    assert (volume["name"], volume["size_bytes"]) == ("demo", 5 * 1024**2)
    assert [row["phase"] for row in cli.json("migration", "list")] == ["success", "success"]
    printed = [shlex.split(line)[3:] for line in out.splitlines() if line.startswith("  volmig --config-file")]
    assert len(printed) == 4
    for words in printed:
        cli(*words)


@pytest.mark.parametrize("size", ["1B", "511B", "4097B", "1MiB"])
def test_any_size_works(tmp_path: Path, size: str) -> None:
    with demo(tmp_path, "--size", size) as process:
        out, told = process.communicate(timeout=90)
    assert process.returncode == 0, told
    assert out.count("every byte is as it was written") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_the_bar_moves(tmp_path: Path, no_color: bool) -> None:
    env = environment(TERM="xterm-256color", **({"NO_COLOR": "1"} if no_color else {}))
    with terminal() as (ours, theirs), demo(tmp_path, env=env, stdout=theirs) as process:
        os.close(theirs)
        text = read_terminal(ours, process)
        process.communicate(timeout=90)
    assert process.returncode == 0
    shares = {int(share) for share in re.findall(r"(\d+) %", text)}
    assert len(shares) > 5
    assert "MiB/s" in text
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) is not no_color


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["volume-", "beta/volume-"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, number: int, moment: str) -> None:
    env = environment(TERM="xterm")
    with terminal() as (ours, theirs), demo(tmp_path, "--size", "1GiB", env=env, stdout=theirs) as process:
        os.close(theirs)
        until(lambda: files(tmp_path, moment), "the demo is at work")
        process.send_signal(number)
        read_terminal(ours, process)
        _, told = process.communicate(timeout=90)
    assert process.returncode == 130, told
    assert list(tmp_path.iterdir()) == []
    assert "[migration-cancelled]" in told or "[interrupted]" in told
    assert "Traceback" not in told


def files(directory: Path, part: str) -> Sequence[Path]:
    return [path for path in directory.rglob("*") if part in str(path) and path.is_file()]


def test_a_reader_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(timeout=90) == 141
    assert told == ""
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    with demo(tmp_path / "nosuch") as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "[request-invalid]" in told
