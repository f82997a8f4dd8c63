"""A process that does nothing but fork: each run's processes begin with everything imported.

It has one thread, and reads jobs from its standard input, a line of JSON each; it answers each with one on its standard
output.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from volmig.testing.killsweep.bench import FileBench
from volmig.testing.killsweep.invariants import MARKER, problems_after_kill, problems_at_rest, programs_of
from volmig.testing.killsweep.marks import Kill
from volmig.testing.killsweep.scenario import (
    Run,
    Scenario,
    Stage,
    migrate_plainly,
    open_engine,
    perform,
    prepare,
    recover,
)
from volmig.testing.killsweep.zygote import Job, Outcome, load_scenarios

_SHOWN_LINES = 40


def serve(scenarios: dict[str, Scenario], jobs: IO[str], answers: IO[str]) -> None:
    """Do jobs until there are no more."""
    for line in jobs:
        outcome = do(scenarios, Job(**json.loads(line)))
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()


def do(scenarios: dict[str, Scenario], job: Job) -> Outcome:
    """Do one job, each of its steps in a process of its own."""
    scenario, directory = scenarios[job.scenario], Path(job.directory)
    directory.mkdir(parents=True)
    os.environ[MARKER] = str(directory)
    outcome = Outcome()
    try:
        try:
            _steps(scenario, directory, [Kill.parse(text) for text in job.kills], outcome)
        except _StepFailed as failure:
            outcome.problems.append(str(failure))
        outcome.problems.extend(f"had to be killed: {program}" for program in _kill_programs(directory))
        if outcome.problems:
            outcome.problems.append(_tail(directory / "log"))
        if job.keep:
            shutil.copytree(directory, directory.with_name(f"{directory.name}.kept"), symlinks=True)
    finally:
        _kill_programs(directory)
        scenario.bench.end(directory)
    return outcome


def _kill_programs(directory: Path) -> list[str]:
    """End the programs that a run has left, and return them."""
    programs = programs_of(directory)
    for pid in programs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(programs.values())


class _StepFailed(Exception):
    """A step of a run did not end as it must."""


def _steps(scenario: Scenario, directory: Path, kills: list[Kill], outcome: Outcome) -> None:
    _forked(lambda run: prepare(scenario, run), scenario, directory, "prepare")
    for number, kill in enumerate([*kills, None]):
        began = time.monotonic()
        if number == 0:
            killed = _forked(lambda run: perform(scenario, run), scenario, directory, "the act", kill)
        else:
            killed = _forked(lambda run: recover(scenario, run), scenario, directory, f"recovery {number}", kill)
        if not killed:
            outcome.seconds = time.monotonic() - began
            outcome.points = json.loads((directory / "points").read_text())
            outcome.missed = "" if kill is None else str(kill)
            if number == 0:
                _forked(lambda run: recover(scenario, run), scenario, directory, "recovery 1")
            break
        scenario.bench.interrupted(directory)
        outcome.problems.extend(_look(lambda run: problems_after_kill(scenario, run), scenario, directory))
    outcome.problems.extend(_look(lambda run: problems_at_rest(scenario, run), scenario, directory))


def _look(check: Callable[[Run], list[str]], scenario: Scenario, directory: Path) -> list[str]:
    found = directory / "problems"

    def look(run: Run) -> None:
        found.write_text(json.dumps(check(run)))

    _forked(look, scenario, directory, "the check")
    problems: list[str] = json.loads(found.read_text())
    return problems


def _forked(
    work: Callable[[Run], None], scenario: Scenario, directory: Path, name: str, kill: Kill | None = None
) -> bool:
    """Do some work in a process of its own, and wait for its end.

    :returns: whether it was killed.
    :raises _StepFailed: when it ended in any other way than it should.
    """
    pid = os.fork()
    if not pid:
        _be_child(work, scenario, directory, name, kill)
    try:
        status = _wait(pid, 2 * scenario.bench.patience_seconds)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    if status is None:
        raise _StepFailed(f"{name} hung")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and kill is not None:
        return True
    if status:
        raise _StepFailed(f"{name} ended with status {os.waitstatus_to_exitcode(status)}")
    return False


def _be_child(work: Callable[[Run], None], scenario: Scenario, directory: Path, name: str, kill: Kill | None) -> None:
    """Do the work and end this process, whatever happens."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(level=logging.INFO, format=f"{name}: %(levelname)s %(name)s: %(message)s", force=True)
        faulthandler.dump_traceback_later(1.75 * scenario.bench.patience_seconds)
        scenario.adjust()
        run = Run(scenario.bench, directory, kill)
        work(run)
        (directory / "points").write_text(json.dumps(run.marks.points))
        status = 0
    except BaseException:  # noqa: BLE001
        # Whatever it is belongs into this run's log; the zygote's code must not go on in this process.
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(pid: int, seconds: float) -> int | None:
    """Return how a process has ended; one that hangs is killed, and the answer is None."""
    with _pidfd(pid) as fd:
        ended, _, _ = select.select([fd], [], [], seconds)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return status if ended else None


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(["the end of the log:", *lines[-_SHOWN_LINES:]])


def warm_up() -> None:
    """Do a migration in this process, so that all that is loaded late is loaded, and wait until its threads are gone.

    :raises RuntimeError: when one of them stays: a process with threads must not fork.
    """
    bench = FileBench({"volume_driver": "file"})
    scenario = Scenario(name="warm-up", bench=bench, act=migrate_plainly(force_host_copy=True))
    with tempfile.TemporaryDirectory(prefix="killsweep-") as directory:
        run = Run(bench, Path(directory))
        prepare(scenario, run)
        with open_engine(run, run.open_store()) as engine:
            scenario.act(Stage(run=run, engine=engine))
    deadline = time.monotonic() + bench.patience_seconds
    while threading.active_count() > 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"these threads stay: {threading.enumerate()}")
        time.sleep(0.001)
    # What is there now is in all processes; looking for garbage in it would only make each have its own.
    gc.collect()
    gc.freeze()


def main(arguments: Sequence[str]) -> None:
    """Serve until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # What a run has set up, such as mounts, is taken down also when somebody ends the sweep.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    warm_up()
    with answers:
        serve(load_scenarios(arguments[0]), sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
