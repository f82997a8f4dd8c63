"""The engine nbdcopy, with a program that stands in for it. The real one is used by the functional tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.transfer.base import CopyJob, CopyOptions, EngineOutcome
from volmig.transfer.control import Control
from volmig.transfer.engines.nbdcopy import NbdcopyEngine

from . import programs
from .fakes import Handle, make_file, nothing_left, pattern
from .image_headers import make
from .nbd_server import ALL_FLAGS, READ_ONLY, NbdServer

MIB = 1024 * 1024


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs.install(tmp_path / "bin", nbdcopy=programs.NBDCOPY)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VOLMIG_TEST_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def run(source: Any, destination: Any, size: int, **options: Any) -> tuple[EngineOutcome, int]:
    done: list[int] = []
    job = CopyJob(
        source=source,
        destination=destination,
        size_bytes=size,
        options=CopyOptions(engine="nbdcopy", **options),
        control=Control(),
        advance=lambda moved, _: done.append(moved),
        on_process=lambda _: None,
    )
    with nothing_left():
        outcome = NbdcopyEngine().run(job)
    return outcome, sum(done)


def test_copies_and_flushes(log: Path, tmp_path: Path) -> None:
    source, destination = make(tmp_path / "source", pattern(MIB + 77)), make_file(tmp_path / "destination", MIB + 77)
    outcome, done = run(source, destination, MIB + 77)
    assert outcome.bytes_copied == done == MIB + 77
    assert destination.read_bytes() == pattern(MIB + 77)
    command = json.loads(log.read_text())
    assert command[1:] == ["--flush", "--progress=1", "--", str(source), str(destination)]
    run(source, destination, MIB + 77, destination_is_zero=True)
    assert "--destination-is-zero" in log.read_text()


def test_what_it_would_do_to_a_larger_end_is_refused(log: Path, tmp_path: Path) -> None:
    source, destination = make(tmp_path / "source", pattern(MIB)), make(tmp_path / "destination", b"\xaa" * 2 * MIB)
    with pytest.raises(errors.UnsupportedTransfer, match="to its end"):
        run(source, destination, MIB - 512)
    with pytest.raises(errors.UnsupportedTransfer, match="would cut"):
        run(source, destination, MIB)
    with pytest.raises(errors.SourceTooShort):
        run(source, destination, 2 * MIB)
    with pytest.raises(errors.DestinationTooShort):
        run(destination, source, 2 * MIB)
    assert destination.read_bytes() == b"\xaa" * 2 * MIB
    assert not log.exists()


def test_sizes_and_rights_of_exports_are_looked_at_first(log: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "file", pattern(8192))
    with NbdServer(bytes(4096)) as server, pytest.raises(errors.DestinationTooShort):
        run(path, server.address, 8192)
    with NbdServer(bytes(4096)) as server, pytest.raises(errors.SourceTooShort):
        run(server.address, path, 8192)
    forbidden = NbdServer(bytes(8192), flags=ALL_FLAGS | READ_ONLY)
    with forbidden as server, pytest.raises(errors.RequestInvalid, match="read-only"):
        run(path, server.address, 8192)
    assert not log.exists()


@pytest.mark.parametrize(("mode", "error"), [("full", errors.DiskFull), ("broken", errors.TransferFailed)])
def test_failures(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, error: type[errors.VolmigError]
) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", mode)
    source, destination = make(tmp_path / "source", pattern(MIB)), make_file(tmp_path / "destination", MIB)
    with pytest.raises(error) as raised:
        run(source, destination, MIB)
    assert raised.value.fields["path"] == str(destination if mode == "full" else source)


def test_refusals(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = NbdcopyEngine()
    path, address = tmp_path / "x", "nbd://host/x"
    assert engine.refusal(path, address, CopyOptions()) == ""
    assert engine.refusal(address, path, CopyOptions()) == ""
    assert engine.refusal(path, path, CopyOptions(engine="nbdcopy")) == ""
    assert "no end" in engine.refusal(path, path, CopyOptions())
    assert "handle" in engine.refusal(Handle(b""), address, CopyOptions())  # type: ignore[arg-type]
    assert "limit" in engine.refusal(path, address, CopyOptions(bandwidth_limit_bytes=1))
    assert "raw" in engine.refusal(path, address, CopyOptions(source_format="qcow2"))
    with pytest.raises(errors.RequestInvalid):
        engine.refusal(path, "nbds://host", CopyOptions())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.ProgramMissing) as raised:
        engine.refusal(path, address, CopyOptions())
    assert "libnbd-bin" in raised.value.hint
