"""The engine qemu-img, with a program that stands in for it. The real one is used by the functional tests."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON, until
from volmig import errors
from volmig.transfer.base import CopyJob, CopyOptions
from volmig.transfer.control import Control
from volmig.transfer.engines.qemu_img import QemuImgEngine

from . import programs
from .fakes import Handle, children, make_file, nothing_left, pattern
from .image_headers import make, qcow2
from .test_dd import state_of

MIB = 1024 * 1024


class Bench:
    """The engine, with what it is given and what it tells."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.control = Control()
        self.events: list[tuple[int, int]] = []
        self.pids: list[int] = []
        self.flushes = 0

    def run(self, source: Path, destination: Path, size: int, **options: Any) -> str:
        job = CopyJob(
            source=source,
            destination=destination,
            size_bytes=size,
            options=CopyOptions(engine="qemu-img", **options),
            control=self.control,
            advance=lambda done, skipped: self.events.append((done, skipped)),
            on_process=lambda helper: self.pids.append(helper.pid),
            flushing=self._flushing,
        )
        with nothing_left():
            outcome = QemuImgEngine().run(job)
        assert outcome.bytes_copied == size
        assert sum(done for done, _ in self.events) == size
        return outcome.means

    def _flushing(self) -> None:
        self.flushes += 1

    @property
    def commands(self) -> list[list[str]]:
        log = self.root / "log"
        return [json.loads(line)[1:] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    programs.install(tmp_path / "bin", qemu_img=programs.QEMU_IMG)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VOLMIG_TEST_LOG", str(tmp_path / "log"))
    return Bench(tmp_path)


def test_raw_to_raw_keeps_what_is_behind(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "source", pattern(3 * MIB))
    destination = make(tmp_path / "destination", b"\xaa" * (2 * MIB))
    means = bench.run(source, destination, MIB)
    assert destination.read_bytes() == pattern(3 * MIB)[:MIB] + b"\xaa" * MIB
    (command,) = bench.commands
    assert command[0] == "convert"
    assert "-n" in command
    assert "--target-is-zero" not in command
    assert command[command.index("-m") + 1] == "16"
    assert "-W" in command
    assert json.loads(command[-2].removeprefix("json:"))["size"] == MIB
    assert "16 requests" in means
    assert bench.flushes >= 1
    assert len(bench.pids) == 1


def test_what_is_known_to_be_zero_is_said(bench: Bench, tmp_path: Path) -> None:
    source, destination = make_file(tmp_path / "source", MIB), make_file(tmp_path / "destination", MIB)
    bench.run(source, destination, MIB, destination_is_zero=True)
    assert "--target-is-zero" in bench.commands[0]


def test_an_image_is_made_in_the_file_that_is_there(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "source", pattern(MIB))
    destination = make(tmp_path / "name, with=signs", b"")
    inode = destination.stat().st_ino
    bench.run(source, destination, MIB, destination_format="qcow2")
    assert destination.stat().st_ino == inode
    assert destination.read_bytes() == pattern(MIB)
    create, convert = bench.commands
    assert create[:4] == ["create", "-q", "-f", "qcow2"]
    assert create[4].startswith("/proc/self/fd/")
    assert create[5] == str(MIB)
    assert "--target-is-zero" in convert
    assert convert[-1].startswith("driver=qcow2,file.driver=file,file.filename=/proc/self/fd/")
    assert len(bench.pids) == 2


def test_a_size_of_no_whole_sectors(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "source", pattern(1000))
    bench_destination = make(tmp_path / "destination", b"")
    with pytest.raises(errors.UnsupportedTransfer, match="whole sectors"):
        bench.run(source, make_file(tmp_path / "raw", 1000), 1000)
    with pytest.raises(errors.UnsupportedTransfer, match="whole sectors"):
        bench.run(source, bench_destination, 999, destination_format="qcow2")
    assert bench.commands == []
    assert bench_destination.read_bytes() == b""


def test_nothing_to_copy(bench: Bench, tmp_path: Path) -> None:
    destination = make(tmp_path / "destination", b"kept")
    bench.run(make(tmp_path / "source", b""), destination, 0)
    assert destination.read_bytes() == b"kept"
    assert bench.commands == []


@pytest.mark.parametrize(
    ("content", "ok"),
    [
        (b"", True),
        (bytes(10 * MIB), False),
        (qcow2(), True),
        (qcow2(backing="/etc/passwd", backing_format="raw"), True),
        (b"KDMV" + bytes(1000), False),
        (pattern(100), False),
    ],
)
def test_only_nothing_or_an_old_image_is_replaced(bench: Bench, tmp_path: Path, content: bytes, ok: bool) -> None:
    source = make(tmp_path / "source", pattern(MIB))
    destination = make(tmp_path / "destination", content)
    if ok:
        bench.run(source, destination, MIB, destination_format="qcow2")
        return
    with pytest.raises(errors.UnsupportedFormat, match="to replace it"):
        bench.run(source, destination, MIB, destination_format="qcow2")
    assert destination.read_bytes() == content
    assert bench.commands == []


def test_a_file_of_holes_is_replaced(bench: Bench, tmp_path: Path) -> None:
    source = make(tmp_path / "source", pattern(MIB))
    bench.run(source, make_file(tmp_path / "destination", 4 * MIB), MIB, destination_format="qcow2")


def test_a_source_that_lies_is_refused_before_anything_is_made(bench: Bench, tmp_path: Path) -> None:
    destination = make(tmp_path / "destination", b"")
    source = make(tmp_path / "source", qcow2(backing="/etc/passwd", backing_format="raw"))
    for format_name in ("raw", "qcow2", "vmdk"):
        with pytest.raises(errors.UnsupportedFormat):
            bench.run(source, destination, MIB, source_format=format_name, destination_format="qcow2")
    assert bench.commands == []
    assert destination.read_bytes() == b""


def test_nothing_is_left_to_be_guessed(bench: Bench, tmp_path: Path) -> None:
    make(tmp_path / "base", bytes(MIB))
    source = make(tmp_path / "source", qcow2(backing="base", backing_format="raw"))
    bench.run(source, make_file(tmp_path / "destination", MIB), MIB, source_format="qcow2")
    node = json.loads(bench.commands[0][-2].removeprefix("json:"))
    seen = 0
    pending = [node]
    while pending:
        item = pending.pop()
        assert item["driver"] in ("raw", "qcow2", "file")
        if item["driver"] == "file":
            assert item["filename"].startswith("/proc/self/fd/")
            seen += 1
        pending.extend(value for value in item.values() if isinstance(value, dict))
    assert seen == 2
    assert str(tmp_path) not in json.dumps(node)


class Copying:
    """A copy in a thread of its own."""

    def __init__(self, bench: Bench, size: int, *, limit: int = 0) -> None:
        self.bench = bench
        bench.control.limit_bytes = limit
        self.error: BaseException | None = None
        source = make_file(bench.root / "source", size, [(0, MIB)])
        self.destination = make_file(bench.root / "destination", size)
        self.thread = threading.Thread(target=self._run, args=(source, self.destination, size))
        self.thread.start()

    def _run(self, source: Path, destination: Path, size: int) -> None:
        try:
            self.bench.run(source, destination, size)
        except BaseException as exc:  # noqa: BLE001 - kept for the test's own thread
            self.error = exc

    @property
    def done(self) -> int:
        return sum(done for done, _ in self.bench.events)

    def wait_for_progress(self) -> None:
        until(lambda: self.done)

    @property
    def is_held(self) -> bool:
        return state_of(self.bench.pids[-1]) == "T"

    def cancel(self) -> float:
        begun = time.monotonic()
        self.bench.control.cancel()
        self.thread.join(LONG)
        return time.monotonic() - begun


@pytest.mark.parametrize("mode", ["slow", "deaf"])
def test_cancel(bench: Bench, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", mode)
    copying = Copying(bench, 64 * MIB if mode == "slow" else MIB)
    copying.wait_for_progress()
    assert copying.cancel() < SOON
    assert isinstance(copying.error, errors.TransferCancelled)
    assert not set(bench.pids) & children()


def test_pause(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", "slow")
    copying = Copying(bench, 64 * MIB)
    copying.wait_for_progress()
    bench.control.pause()
    until(lambda: copying.is_held)
    before = copying.destination.read_bytes()
    time.sleep(0.1)
    assert copying.destination.read_bytes() == before
    done = copying.done
    bench.control.resume()
    until(lambda: copying.done > done)
    assert copying.cancel() < SOON


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the signals that programs are sent."""
    numbers: list[int] = []
    real = os.killpg

    def killpg(group: int, number: int) -> None:
        numbers.append(number)
        real(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    return numbers


def test_a_limit_holds_the_program_until_it_is_lifted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    """The program comes to the half, which a byte a second pays for in days, and could go on from there."""
    monkeypatch.setenv("VOLMIG_TEST_MODE", "half")
    copying = Copying(bench, 2 * MIB, limit=1)
    until(lambda: bench.pids and copying.is_held)
    (bench.root / "log.go").touch()
    before = copying.destination.read_bytes()
    time.sleep(0.1)
    assert copying.is_held
    assert copying.destination.read_bytes() == before
    assert copying.done < 2 * MIB
    bench.control.limit_bytes = 0
    copying.thread.join(LONG)
    assert copying.error is None
    assert copying.destination.read_bytes() == (bench.root / "source").read_bytes()
    assert sent[0] == signal.SIGSTOP
    assert bench.commands[0][bench.commands[0].index("-m") + 1] == "1"


def test_without_a_limit_it_is_never_held(bench: Bench, monkeypatch: pytest.MonkeyPatch, sent: list[int]) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", "half")
    copying = Copying(bench, 2 * MIB)
    copying.wait_for_progress()
    (bench.root / "log.go").touch()
    copying.thread.join(LONG)
    assert copying.error is None
    assert signal.SIGSTOP not in sent


def test_a_full_disk(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", "full")
    source, destination = make(tmp_path / "source", pattern(MIB)), make_file(tmp_path / "destination", MIB)
    with pytest.raises(errors.DiskFull) as raised:
        bench.run(source, destination, MIB)
    assert raised.value.fields == {"path": str(destination), "offset": MIB // 2}


def test_what_the_program_says_reaches_the_user_by_the_names_that_they_know(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", "broken")
    source, destination = make(tmp_path / "source", pattern(MIB)), make_file(tmp_path / "destination", MIB)
    with pytest.raises(errors.TransferFailed, match="Permission denied") as raised:
        bench.run(source, destination, MIB)
    assert raised.value.fields["path"] == str(source)
    assert str(source) in raised.value.fields["reason"]
    assert "/proc/self/fd" not in raised.value.message


def test_refusals(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = QemuImgEngine()
    path = tmp_path / "x"
    assert engine.refusal(path, path, CopyOptions(destination_format="vhdx")) == ""
    assert "handle" in engine.refusal(Handle(b""), path, CopyOptions())  # type: ignore[arg-type]
    assert "NBD" in engine.refusal("nbd://host", path, CopyOptions())
    assert "'qed'" in engine.refusal(path, path, CopyOptions(source_format="qed"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.ProgramMissing) as raised:
        engine.refusal(path, path, CopyOptions())
    assert "qemu-utils" in raised.value.hint
