"""A machine from start to end, judged with a stand-in for virtme-run and the guest (see :mod:`.stand_in`)."""

from __future__ import annotations

import io
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from volmig.testing.vm import (
    BedError,
    BedIncomplete,
    BootFailed,
    CommandTimedOut,
    Kernel,
    MachineEnded,
    MachineOptions,
    MachinePanicked,
    MachinePoweredOff,
    VirtualMachine,
)
from volmig.testing.vm import __main__ as program

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]
KERNEL = Kernel(image=Path("/none/vmlinuz"), modules=Path("/none/modules"))
SECONDS = 20.0


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Give each test a temporary directory of its own, which must be empty after it."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    before = threading.active_count()
    yield directory
    assert list(directory.iterdir()) == []
    assert threading.active_count() == before


def _machine(**given):
    output = given.pop("output", None)
    options = MachineOptions(**{"boot_timeout_seconds": SECONDS, **given})
    return VirtualMachine(options, output=output, kernel=lambda: KERNEL, launcher=lambda: STAND_IN)


def test_output_and_status_of_one_command_after_the_other():
    output = io.BytesIO()
    with _machine(output=output) as machine:
        assert machine.run(["bash", "-c", "printf 'no end of line'"], timeout_seconds=SECONDS) == 0
        assert output.getvalue() == b"no end of line"
        assert machine.run(["bash", "-c", "echo; echo on stderr >&2; exit 42"], timeout_seconds=SECONDS) == 42
        assert machine.is_running
    assert not machine.is_running
    assert output.getvalue().startswith(b"no end of line\n")


def test_a_command_gets_its_directory_and_the_chosen_variables_only(tmp_path, monkeypatch):
    monkeypatch.setenv("NOT_CHOSEN", "x")
    output = io.BytesIO()
    with _machine(output=output) as machine:
        command = ["bash", "-c", 'pwd; echo "$CHOSEN/${NOT_CHOSEN-unset}"']
        machine.run(command, environment={"CHOSEN": "a b"}, directory=tmp_path, timeout_seconds=SECONDS)
    assert output.getvalue().decode().splitlines() == [str(tmp_path), "a b/unset"]


def test_results_and_logs_are_handed_over_and_the_end_is_orderly(tmp_path):
    results = tmp_path / "deep" / "results"
    with _machine(results=results) as machine:
        machine.run(["echo", "seen"], timeout_seconds=SECONDS)
    assert (results / "output.log").read_text() == "seen\n"
    assert "Linux version" in (results / "console.log").read_text()
    assert (results / "stopped").read_text() == "in order"


@pytest.mark.parametrize(
    ("verb", "error", "words"),
    [
        ("panic", MachinePanicked, "panicked"),
        ("off", MachinePoweredOff, "switched itself off"),
        ("vanish", MachineEnded, "The machine ended"),
    ],
)
def test_a_machine_that_goes_away_is_told_as_what_it_was(tmp_path, verb, error, words):
    results = tmp_path / "results"
    with _machine(results=results) as machine:
        with pytest.raises(
            MachineEnded, match=f"{words} while 'machine {verb}' ran, which has no exit status"
        ) as caught:
            machine.run(["machine", verb], timeout_seconds=SECONDS)
        assert type(caught.value) is error
        assert not machine.is_running
    assert (results / "output.log").read_text() == "last words"


def test_a_command_that_hangs_is_shown_and_the_machine_is_switched_off(tmp_path):
    results = tmp_path / "results"
    with _machine(results=results) as machine:
        with pytest.raises(CommandTimedOut, match="did not end in 0 seconds"):
            machine.run(["machine", "hang"], timeout_seconds=0.2)
        assert not machine.is_running
    assert (results / "processes.log").read_text() == "what was running"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("dies", r"ended before it was ready(.|\n)*Unable to mount root"),
        ("never", "was not ready after"),
        ("broken", "could not load the kernel modules x"),
    ],
)
def test_a_machine_that_does_not_boot_is_told_with_its_console(tmp_path, monkeypatch, behaviour, words):
    monkeypatch.setenv("STAND_IN", behaviour)
    results = tmp_path / "results"
    machine = _machine(results=results, boot_timeout_seconds=1.0 if behaviour == "never" else SECONDS)
    with pytest.raises(BootFailed, match=words):
        machine.start()
    assert not machine.is_running
    assert "Linux version" in (results / "console.log").read_text()


def test_a_launcher_that_cannot_be_started_is_told():
    machine = VirtualMachine(kernel=lambda: KERNEL, launcher=lambda: ["/no/such/virtme-run"])
    with pytest.raises(BedIncomplete, match="/no/such/virtme-run cannot be started"):
        machine.start()


def test_a_power_off_by_the_owner_ends_the_wait_for_a_command():
    with _machine() as machine:
        command = machine.launch(["machine", "hang"])
        threading.Timer(0.1, machine.power_off).start()
        began = time.monotonic()
        with pytest.raises(MachinePoweredOff, match="was switched off"):
            command.wait(SECONDS)
        assert time.monotonic() - began < SECONDS


def test_a_machine_is_started_once():
    with _machine() as machine, pytest.raises(BedError, match="was started before"):
        machine.start()


def test_a_command_for_a_machine_that_was_not_started_is_refused():
    with pytest.raises(BedError, match="not running"):
        _machine().launch(["true"])


def test_output_that_cannot_be_passed_on_is_an_error_of_the_wait(tmp_path):
    class Broken:
        def write(self, data):
            raise BrokenPipeError

        def flush(self):
            pass

    with _machine(output=Broken(), results=tmp_path / "r") as machine, pytest.raises(BedError, match="passed on"):
        machine.run(["echo", "lost"], timeout_seconds=SECONDS)
    assert (tmp_path / "r" / "output.log").read_text() == "lost\n"


def test_an_exception_of_the_caller_ends_the_machine():
    with pytest.raises(KeyError), _machine() as machine:
        raise KeyError("the caller's")
    assert not machine.is_running


class TestProgram:
    """``python -m volmig.testing.vm``, with the same stand-in."""

    @pytest.fixture(autouse=True)
    def stand_in(self, monkeypatch):
        monkeypatch.setattr(program, "prepare", lambda: None)
        monkeypatch.setattr(program, "virtme_run", lambda: STAND_IN)
        monkeypatch.setattr(program.KernelCache, "kernel", lambda _: KERNEL)
        monkeypatch.setattr(program, "VirtualMachine", self._made)
        monkeypatch.setattr(program.signal, "signal", lambda *_: None)

    @staticmethod
    def _made(options, **given):
        return VirtualMachine(options, launcher=lambda: STAND_IN, **given)

    def test_stdout_is_the_commands_and_the_status_too(self, capfdbinary):
        assert program.main(["--", "bash", "-c", "echo '=== 1 passed ==='; exit 5"]) == 5
        assert capfdbinary.readouterr().out == b"=== 1 passed ===\n"

    def test_a_failure_of_the_bed_is_125_and_told_on_stderr(self, capfdbinary):
        assert program.main(["--", "machine", "panic"]) == program.BED_FAILED
        said = capfdbinary.readouterr()
        assert said.out == b"last words"
        assert b"kernel panicked" in said.err

    def test_variables_are_passed_by_name_or_with_a_value(self, monkeypatch, capfdbinary):
        monkeypatch.setenv("BY_NAME", "a b")
        given = ["--env", "BY_NAME", "--env", "WITH=c=d", "--env", "NOT_SET_HERE"]
        command = ["bash", "-c", 'echo "$BY_NAME|$WITH|${NOT_SET_HERE-unset}"']
        assert program.main([*given, "--", *command]) == 0
        assert capfdbinary.readouterr().out == b"a b|c=d|unset\n"

    def test_a_name_that_is_none_is_refused(self, capfd):
        assert program.main(["--env", "A B=c", "--", "true"]) == program.BED_FAILED
        assert "not a name of a variable" in capfd.readouterr().err

    def test_prepare_only_starts_nothing(self, monkeypatch):
        monkeypatch.setattr(program, "VirtualMachine", None)
        assert program.main(["--prepare-only"]) == 0

    def test_a_call_without_a_command_is_refused(self, capfd):
        with pytest.raises(SystemExit):
            program.main([])
        assert "no COMMAND" in capfd.readouterr().err

    def test_an_interruption_switches_the_machine_off(self, monkeypatch):
        def interrupted(*_args, **_kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(VirtualMachine, "run", interrupted)
        assert program.main(["--", "true"]) == 130
