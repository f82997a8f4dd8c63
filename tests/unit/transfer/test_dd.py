"""What is peculiar to the engine dd and to the programs that engines run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON
from volmig import errors
from volmig.transfer import Control, CopyJob, CopyOptions, HelperProcess, Verify, boottime_seconds, copy
from volmig.transfer.engines.dd import DdEngine
from volmig.transfer.engines.process import TrackedProcess, start_time_ticks

from .fakes import Handle, children, make_file

MIB = 1024 * 1024
BIG = 4 * 1024 * MIB
DD = CopyOptions(engine="dd", verify=Verify.NONE)


def unwatched(*_: Any) -> None:
    """Do nothing."""


def job(source: Any, destination: Any, size: int, **more: Any) -> CopyJob:
    values: dict[str, Any] = {
        "options": DD,
        "control": Control(),
        "advance": unwatched,
        "on_process": unwatched,
        **more,
    }
    return CopyJob(source=source, destination=destination, size_bytes=size, **values)


def state_of(pid: int) -> str:
    """Return the letter of a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition: Callable[[], bool], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def endless(tmp_path: Path) -> tuple[str, Path]:
    """Ends between which dd is busy for long: it reads holes and passes over them one by one."""
    source = make_file(tmp_path / "source", 64 * BIG)
    return str(source), make_file(tmp_path / "destination", 64 * BIG)


class Running:
    """A copy by dd in a thread of its own."""

    def __init__(self, ends: tuple[str, Path]) -> None:
        self.control = Control()
        self.helper: HelperProcess | None = None
        self.error: errors.VolmigError | None = None
        self.events: list[int] = []
        self.thread = threading.Thread(target=self._run, args=ends)
        self.thread.start()
        wait_for(lambda: bool(self.events) and self.events[-1] > 0)

    @property
    def pid(self) -> int:
        assert self.helper is not None
        return self.helper.pid

    def _run(self, source: str, destination: Path) -> None:
        try:
            copy(
                source,
                destination,
                size_bytes=64 * BIG,
                options=CopyOptions(engine="dd", verify=Verify.NONE, destination_is_zero=True),
                control=self.control,
                progress=lambda event: self.events.append(event.bytes_done),
                on_process=lambda helper: setattr(self, "helper", helper),
            )
        except errors.VolmigError as exc:
            self.error = exc

    def end(self) -> float:
        """Cancel; return how long the copy took to end."""
        begun = time.monotonic()
        self.control.cancel()
        self.thread.join(LONG)
        return time.monotonic() - begun


def test_cancel_kills_and_reaps(endless: tuple[str, Path]) -> None:
    running = Running(endless)
    assert running.pid in children()
    assert os.getpgid(running.pid) == running.pid != os.getpgid(0)
    assert running.helper == HelperProcess(
        pid=running.pid, start_time_ticks=start_time_ticks(running.pid), program="dd"
    )
    assert running.end() < SOON
    assert isinstance(running.error, errors.TransferCancelled)
    assert 0 < running.error.fields["bytes_done"] < 64 * BIG
    assert not Path(f"/proc/{running.pid}").exists()


def test_pause_stops_the_program_and_a_paused_one_can_be_cancelled(endless: tuple[str, Path]) -> None:
    running = Running(endless)
    running.control.pause()
    wait_for(lambda: state_of(running.pid) == "T")
    running.control.resume()
    wait_for(lambda: state_of(running.pid) in "RSD")
    running.control.pause()
    wait_for(lambda: state_of(running.pid) == "T")
    assert running.end() < SOON
    assert isinstance(running.error, errors.TransferCancelled)


def test_a_limit_set_while_it_runs_holds_the_program(endless: tuple[str, Path]) -> None:
    running = Running(endless)
    running.control.limit_bytes = 1
    wait_for(lambda: state_of(running.pid) == "T")
    running.control.limit_bytes = 0
    wait_for(lambda: state_of(running.pid) in "RSD")
    assert running.end() < SOON


@pytest.mark.parametrize("held", [False, True])
def test_dd_is_killed_at_the_deadline(
    endless: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    held: bool,
) -> None:
    running = Running(endless)
    if held:
        running.control.pause()
        wait_for(lambda: state_of(running.pid) == "T")
    sent: list[int] = []
    real = os.killpg

    def killpg(group: int, number: int) -> None:
        sent.append(number)
        real(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    begun = time.monotonic()
    running.control.deadline_seconds = boottime_seconds()
    running.thread.join(LONG)
    assert time.monotonic() - begun < SOON
    assert isinstance(running.error, errors.TransferCancelled)
    assert sent == [signal.SIGSTOP, signal.SIGKILL]
    assert not Path(f"/proc/{running.pid}").exists()


def test_dd_does_not_begin_after_the_deadline(tmp_path: Path) -> None:
    now = [100.0]
    control = Control(boot_clock=lambda: now[0])
    control.deadline_seconds = 101.0
    source, destination = make_file(tmp_path / "source", MIB, [(0, MIB)]), make_file(tmp_path / "destination", MIB)
    with pytest.raises(errors.TransferCancelled):
        copy(
            source,
            destination,
            size_bytes=MIB,
            options=CopyOptions(engine="dd", verify=Verify.NONE),
            control=control,
            on_process=lambda _: now.__setitem__(0, 101.0),
        )
    assert destination.read_bytes() == bytes(MIB)


def test_a_program_killed_by_somebody_else_is_a_failure(endless: tuple[str, Path]) -> None:
    running = Running(endless)
    os.kill(running.pid, signal.SIGKILL)
    running.thread.join(LONG)
    assert isinstance(running.error, errors.TransferFailed)
    assert "signal 9" in running.error.message


def test_it_writes_nothing_before_it_is_recorded(tmp_path: Path) -> None:
    source, destination = make_file(tmp_path / "source", MIB, [(0, MIB)]), tmp_path / "destination"
    destination.write_bytes(bytes(MIB))
    seen: list[bytes] = []

    def record(helper: HelperProcess) -> None:
        time.sleep(0.1)
        seen.append(destination.read_bytes())

    copy(source, destination, size_bytes=MIB, options=DD, on_process=record)
    assert seen == [bytes(MIB)]
    assert destination.read_bytes() == source.read_bytes()


def test_what_on_process_raises_ends_the_program(tmp_path: Path) -> None:
    source, destination = make_file(tmp_path / "source", MIB, [(0, MIB)]), make_file(tmp_path / "destination", MIB)

    def fail(helper: HelperProcess) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        copy(source, destination, size_bytes=MIB, options=DD, on_process=fail)
    assert destination.read_bytes() == bytes(MIB)


def test_refuses_handles_and_limits(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", 10)
    with pytest.raises(errors.UnsupportedTransfer, match="handle"):
        copy(source, Handle(bytes(10)), size_bytes=10, options=DD)  # type: ignore[arg-type]
    destination = make_file(tmp_path / "destination", 10)
    with pytest.raises(errors.UnsupportedTransfer, match="limit"):
        copy(source, destination, size_bytes=10, options=DD, control=Control(limit_bytes=1))


def test_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, destination = make_file(tmp_path / "source", 10), make_file(tmp_path / "destination", 10)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.ProgramMissing) as raised:
        copy(source, destination, size_bytes=10, options=DD)
    assert "coreutils" in raised.value.hint
    with pytest.raises(errors.ProgramMissing):
        DdEngine().run(job(source, destination, 10))


def test_a_full_disk(tmp_path: Path) -> None:
    source = make_file(tmp_path / "source", MIB, [(0, MIB)])
    with pytest.raises(errors.DiskFull) as raised:
        DdEngine().run(job(source, "/dev/full", MIB))
    assert raised.value.fields == {"path": "/dev/full", "offset": 0}


def test_what_dd_says_reaches_the_user(tmp_path: Path) -> None:
    source, absent = make_file(tmp_path / "source", MIB), tmp_path / "absent"
    for ends, text in (
        ((source, absent), "failed to open"),
        ((absent, source), "failed to open"),
        ((tmp_path, source), "directory"),
    ):
        with pytest.raises(errors.TransferFailed, match=text) as raised:
            DdEngine().run(job(*ends, MIB))
        assert raised.value.fields["path"] == str(ends[0] if ends[0] != source else ends[1])
    assert not absent.exists()


def test_a_source_that_ends_early(tmp_path: Path) -> None:
    source, destination = make_file(tmp_path / "source", 1000), make_file(tmp_path / "destination", MIB)
    with pytest.raises(errors.SourceTooShort) as raised:
        DdEngine().run(job(source, destination, MIB))
    assert raised.value.fields["actual"] == 1000


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    ready = tmp_path / "ready"
    script = (
        "import signal, sys, time; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').close(); time.sleep(60)"
    )
    with TrackedProcess(["python3", "-c", script, str(ready)], package="python3") as process:
        process.begin()
        wait_for(ready.exists)
        begun = time.monotonic()
    assert time.monotonic() - begun < SOON
    assert process.helper.pid not in children()


def test_stderr_is_kept_and_bounded() -> None:
    script = "import sys; sys.stderr.write('x' * 10_000_000 + 'end')"
    with TrackedProcess(["python3", "-c", script], package="python3") as process:
        process.begin()
        wait_for(lambda: process.wait(0.1) == 0)
        assert len(process.stderr()) == 4096
        assert process.stderr().endswith("end")


def test_a_program_whose_starter_dies_before_recording_it_never_begins(tmp_path: Path) -> None:
    done = tmp_path / "done"
    starter = f"""
import os
from volmig.transfer.engines.process import TrackedProcess
process = TrackedProcess(["touch", {str(done)!r}], package="coreutils")
print(process.helper.pid, flush=True)
os._exit(0)
"""
    found = subprocess.run([sys.executable, "-c", starter], capture_output=True, check=True, timeout=30)
    pid = int(found.stdout)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z")
    assert not done.exists()


@pytest.mark.parametrize("which", ["source", "destination"])
def test_the_end_that_fails_is_named_whatever_the_ends_are_called(tmp_path: Path, which: str) -> None:
    """Names in which the other one's name is, and the word that tells who failed."""
    directory = tmp_path / "error read"
    directory.mkdir()
    there = make_file(directory / ("x" if which == "source" else "x read"), MIB)
    absent = directory / ("x read" if which == "source" else "x")
    with pytest.raises(errors.TransferFailed, match="failed to open") as raised:
        DdEngine().run(job(*((absent, there) if which == "source" else (there, absent)), MIB))
    assert raised.value.fields["path"] == str(absent)


def test_names_are_those_that_the_caller_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_file(tmp_path / "source", MIB)
    with pytest.raises(errors.TransferFailed, match="failed to open 'absent'") as raised:
        DdEngine().run(job("source", "absent", MIB))
    assert raised.value.fields["path"] == "absent"
