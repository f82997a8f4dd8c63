"""The kill sweep itself: that it kills where it says, sees what is wrong, and can be used for any driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from volmig.testing.killsweep import Kill, Marks, Sweep, Zygote, load_scenarios
from volmig.testing.killsweep.invariants import MARKER, programs_of

SCENARIOS_AT = "tests.functional.crash.defects:SCENARIOS"

CONF = """
[DEFAULT]
host = here
enabled_backends = files

[files]
volume_driver = file
file_directory = {directory}
file_pools = one, two
"""


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "volmig.testing.killsweep", *(str(each) for each in arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("text", ["left.create_volume after#2", "commit (intent copy) before#1+0.2500"])
def test_a_kill_can_be_written_and_read(text: str) -> None:
    assert str(Kill.parse(text)) == text


@pytest.mark.parametrize("text", ["", "left.create_volume", "a#", "a#1+", "a#x"])
def test_what_is_no_kill_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no point"):
        Kill.parse(text)


def test_points_of_one_name_are_numbered() -> None:
    marks = Marks()
    for name in ("a", "b", "a"):
        marks.reach(name)
    assert marks.points == ["a#1", "b#1", "a#2"]


def test_a_process_dies_at_its_point_and_nowhere_else(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        try:
            marks = Marks(Kill.parse("there#2"))
            for name in ("there", "elsewhere"):
                marks.reach(name)
            (tmp_path / "before").touch()
            marks.reach("there")
            (tmp_path / "after").touch()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize(
    ("scenario", "kill", "expected"),
    [
        ("forget-deletion", "commit (phase success) before#1", "in here@left#left there are"),
        ("forget-reservation", "right.update_migrated_volume after#1", "room is still reserved"),
        ("forget-checkpoint", "commit (checkpoint) after#2", "a checkpoint is left"),
        ("forget-temporary-files", "right.create_volume: ftruncate#1", "left over in the storage: right/.volmig-new-"),
        ("spoil-data", "commit (intent retire_source) before#1", "in here@right#right there is another content"),
        ("spoil-data", "commit (phase success) after#1", "right after the kill there is no whole copy"),
    ],
)
def test_defects_are_found(zygotes: list[Zygote], tmp_path: Path, scenario: str, kill: str, expected: str) -> None:
    outcome = Sweep(zygotes, tmp_path).do(load_scenarios(SCENARIOS_AT)[scenario], [kill])
    assert not outcome.missed
    assert expected in "\n".join(outcome.problems)


HELPER_IS_AT_WORK = "commit (note helper-process) after#1+0.0600"


def test_a_program_that_outlives_its_worker_is_stopped(zygotes: list[Zygote], tmp_path: Path) -> None:
    outcome = Sweep(zygotes, tmp_path).do(load_scenarios(SCENARIOS_AT)["long-program"], [HELPER_IS_AT_WORK], keep=True)
    assert not outcome.missed
    assert not outcome.problems
    (log,) = tmp_path.glob("*.kept/log")
    assert "stopping dd" in log.read_text(), "it had ended by itself: this test has shown nothing"


def test_programs_of_a_run_are_known_by_their_environment(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], env={**os.environ, MARKER: str(tmp_path)}) as program:
        try:
            assert programs_of(tmp_path) == {program.pid: "sleep 60"}
            assert not programs_of(tmp_path / "other")
        finally:
            program.kill()


def test_one_point_is_repeated_by_a_command(tmp_path: Path) -> None:
    done = command(
        *("--scenario", "driver", "--directory", tmp_path),
        *("--point", "left.migrate_volume after#1", "--point", "right.do_setup after#1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "driver: 0 problems\n"


def test_unknown_scenarios_are_named(tmp_path: Path) -> None:
    done = command("--scenario", "no-such", "--directory", tmp_path)
    assert done.returncode == 2
    assert "no-such" in done.stderr
    assert "block" in done.stderr


def test_a_driver_of_ones_own(tmp_path: Path) -> None:
    """Through the driver only, and beside a stranger's file, which must stay."""
    stranger = tmp_path / "files" / "one" / "stranger"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("somebody's")
    conf = tmp_path / "volmig.conf"
    conf.write_text(CONF.format(directory=tmp_path / "files"))
    done = command(
        *("--scenarios", "tests.functional.crash.own_driver:SCENARIOS", "--scenario", "copy"),
        *("--point", "files.update_migrated_volume after#1", "--directory", tmp_path / "runs"),
        SWEPT_CONF=str(conf),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "copy: 0 problems\n"
    left = [path for pool in ("one", "two") for path in (tmp_path / "files" / pool).iterdir()]
    assert [path for path in left if not path.name.startswith(".")] == [stranger]
    assert stranger.read_text() == "somebody's"
