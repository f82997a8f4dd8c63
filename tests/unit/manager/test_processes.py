"""Whether a process is gone: never said of one that could still do something."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.waiting import until
from volmig.manager.processes import ProcessIdentity, is_running, start_time_ticks

HOST = "here"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    # Ends with its input, so that nothing is left behind.
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.communicate()


def identity_of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    ticks = start_time_ticks(process.pid)
    assert ticks is not None
    return dataclasses.replace(ProcessIdentity.own(HOST), pid=process.pid, start_time_ticks=ticks)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_this_process_is_not_gone() -> None:
    own = ProcessIdentity.own(HOST)
    assert own.pid == os.getpid()
    assert not own.is_gone(HOST)


def test_what_is_recorded_comes_back() -> None:
    own = ProcessIdentity.own(HOST)
    assert ProcessIdentity.from_facts(own.facts()) == own
    assert ProcessIdentity.from_facts({**own.facts(), "owner": "more"}) == own


@pytest.mark.parametrize("facts", [{}, {"host": "here"}, {"pid": "x"}, None])
def test_what_is_no_identity(facts: object) -> None:
    whole = ProcessIdentity.own(HOST).facts()
    damaged = {**whole, "pid": "x"} if facts is None else facts
    assert ProcessIdentity.from_facts(damaged) is None  # type: ignore[arg-type]


def test_one_that_was_killed_is_gone(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    assert not identity.is_gone(HOST)
    child.kill()
    # Also while nobody has reaped it.
    until(lambda: identity.is_gone(HOST))
    child.wait()
    assert identity.is_gone(HOST)


def test_one_that_is_stopped_is_not_gone(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    child.send_signal(signal.SIGSTOP)
    until(lambda: state_of(child.pid) == "T")
    assert not identity.is_gone(HOST)


def test_another_with_the_same_number_is_another(child: subprocess.Popen[bytes]) -> None:
    identity = identity_of(child)
    assert dataclasses.replace(identity, start_time_ticks=identity.start_time_ticks - 1).is_gone(HOST)


def test_after_a_restart_of_the_machine_all_are_gone() -> None:
    assert dataclasses.replace(ProcessIdentity.own(HOST), boot="another").is_gone(HOST)


@pytest.mark.parametrize(
    "change", [{"host": "there"}, {"host": "there", "boot": "another"}, {"pid_namespace": "pid:[1]"}]
)
def test_nobody_can_tell_of_other_hosts_and_containers(change: dict[str, str]) -> None:
    gone = dataclasses.replace(ProcessIdentity.own(HOST), pid=2**22 + 1)
    assert gone.is_gone(HOST)
    assert not dataclasses.replace(gone, **change).is_gone(HOST)  # type: ignore[arg-type]


_LEADERLESS = """
import ctypes, sys, threading, time
threading.Thread(target=lambda: (sys.stdin.read(), None), daemon=False).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60 if sys.argv[1] == "x86_64" else 93, 0)
"""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the number of exit(2) is known for these")
def test_a_process_whose_first_thread_has_ended_is_not_gone() -> None:
    """As one that was killed while a request of another thread hangs in the kernel."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LEADERLESS, os.uname().machine],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        ticks = start_time_ticks(process.pid)
        assert ticks is not None
        until(lambda: state_of(process.pid) == "Z")
        assert is_running(process.pid, ticks)
    finally:
        process.kill()
    until(lambda: not is_running(process.pid, ticks))
    process.communicate()
