from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG
from volmig import errors
from volmig.cli.background import await_claim, log_path, start_worker, worker_arguments
from volmig.model import Migration, Phase

from .fabricated import migration


class Engine:
    """Shows the migration as the script has it; the last state stays."""

    def __init__(self, *script: Migration) -> None:
        self._script = list(script)

    def show_migration(self, migration_id: str) -> Migration:
        return self._script.pop(0) if len(self._script) > 1 else self._script[0]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_arguments_are_a_list_that_ends_with_the_id() -> None:
    arguments = worker_arguments(["/a b.conf", "/c.conf"], "M")
    assert arguments[:4] == [sys.executable, "-P", "-m", "volmig.cmd.worker"]
    assert arguments[4:] == ["--config-file", "/a b.conf", "--config-file", "/c.conf", "--", "M"]
    assert worker_arguments(None, "M")[4:] == ["--", "M"]


def test_a_worker_has_its_own_session_no_terminal_and_a_private_log(tmp_path: Path) -> None:
    log = log_path(str(tmp_path), "M")
    code = (
        "import os, sys\n"
        "print(os.getsid(0) == os.getpid(), os.readlink('/proc/self/fd/0'), flush=True)\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:4], file=sys.stderr)\n"
        "sys.stdout.write(os.getcwd())"
    )
    assert reap(start_worker(python(code), "M", log)) == 0
    said = log.read_text().splitlines()
    assert said[0] == "True /dev/null"
    assert said[2] == str(Path.cwd())
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_no_descriptor_of_the_command_reaches_the_worker(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        code = f"import os, sys\ntry:\n    os.fstat({secret.fileno()})\nexcept OSError:\n    sys.exit(0)\nsys.exit(9)"
        assert reap(start_worker(python(code), "M", tmp_path / "log")) == 0


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "log").symlink_to(target)
    with pytest.raises(errors.WorkerFailed, match="symbolic links"):
        start_worker(python("print('x')"), "M", tmp_path / "log")
    assert not target.exists()


def test_a_claimed_migration_is_returned(tmp_path: Path) -> None:
    queued, claimed = migration(Phase.QUEUED), migration(Phase.STARTING, epoch=1, owner="w")
    engine: Any = Engine(queued, queued, claimed)
    pid = start_worker(python("import time; time.sleep(600)"), "M", tmp_path / "log")
    try:
        assert await_claim(engine, queued, pid, tmp_path / "log") is claimed
    finally:
        os.kill(pid, 9)
        reap(pid)


def test_a_worker_that_took_it_and_ended_has_not_failed(tmp_path: Path) -> None:
    queued, done = migration(Phase.QUEUED), migration(Phase.SUCCESS, epoch=1)
    pid = start_worker(python(""), "M", tmp_path / "log")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    engine: Any = Engine(done)
    assert await_claim(engine, queued, pid, tmp_path / "log") is done


def test_a_worker_that_takes_a_migration_again_is_waited_for(tmp_path: Path) -> None:
    queued, claimed = migration(Phase.QUEUED, epoch=3), migration(Phase.MIGRATING, epoch=4, owner="w")
    pid = start_worker(python(""), "M", tmp_path / "log")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    engine: Any = Engine(claimed)
    assert await_claim(engine, queued, pid, tmp_path / "log") is claimed
    pid = start_worker(python(""), "M", tmp_path / "log")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    engine = Engine(queued)
    with pytest.raises(errors.WorkerFailed):
        await_claim(engine, queued, pid, tmp_path / "log")


def test_a_migration_that_is_paused_meanwhile_is_returned(tmp_path: Path) -> None:
    paused = migration(Phase.PAUSED, pause_requested_by="eve")
    pid = start_worker(python(""), "M", tmp_path / "log")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    engine: Any = Engine(paused)
    assert await_claim(engine, migration(Phase.QUEUED), pid, tmp_path / "log") is paused


def test_a_worker_that_died_is_reported_with_its_last_words(tmp_path: Path) -> None:
    last_words = "import sys; sys.exit('volmig: no such thing [x]\\nhint: do something')"
    pid = start_worker(python(last_words), "M", tmp_path / "log")
    engine: Any = Engine(migration(Phase.QUEUED))
    with pytest.raises(errors.WorkerFailed) as caught:
        await_claim(engine, migration(Phase.QUEUED), pid, tmp_path / "log")
    assert caught.value.fields["reason"] == "it ended with status 1: volmig: no such thing [x]"
    assert str(tmp_path / "log") in caught.value.hint


def test_a_slow_worker_is_left_alone(tmp_path: Path) -> None:
    queued = migration(Phase.QUEUED)
    engine: Any = Engine(queued)
    pid = start_worker(python("import time; time.sleep(600)"), "M", tmp_path / "log")
    try:
        began = time.monotonic()
        assert await_claim(engine, queued, pid, tmp_path / "log", timeout_seconds=0.2) is queued
        assert time.monotonic() - began < LONG
    finally:
        os.kill(pid, 9)
        assert reap(pid) == -9
