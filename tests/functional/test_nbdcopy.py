"""The engine nbdcopy with the real program."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.unit.transfer.fakes import children
from volmig import errors
from volmig.transfer.control import Control
from volmig.transfer.engines.nbdcopy import NbdcopyEngine

from .images import CONTENT, MIB, job, nbdkit, qemu_nbd, served


@pytest.mark.parametrize("server", [nbdkit, qemu_nbd])
def test_from_and_to_a_server(tmp_path: Path, server: object) -> None:
    source, local, remote = tmp_path / "source", tmp_path / "local", tmp_path / "remote"
    source.write_bytes(CONTENT)
    local.write_bytes(b"\xaa" * len(CONTENT))
    remote.write_bytes(b"\xaa" * (len(CONTENT) + MIB))
    with server(source) as address:  # type: ignore[operator]
        NbdcopyEngine().run(job(address, local, len(CONTENT)))
        assert local.read_bytes() == CONTENT
        with server(remote) as other:  # type: ignore[operator]
            NbdcopyEngine().run(job(address, other, len(CONTENT)))
    assert remote.read_bytes() == CONTENT + b"\xaa" * MIB
    remote.write_bytes(b"\xaa" * (len(CONTENT) + MIB))
    (tmp_path / "remote.sock").unlink(missing_ok=True)
    with server(remote) as other:  # type: ignore[operator]
        NbdcopyEngine().run(job(source, other, len(CONTENT)))
    assert remote.read_bytes() == CONTENT + b"\xaa" * MIB


def test_two_paths(tmp_path: Path) -> None:
    source, local = tmp_path / "source", tmp_path / "-"
    source.write_bytes(CONTENT[:-7])
    local.write_bytes(b"\xaa" * (len(CONTENT) - 7))
    seen: list[int] = []
    copied = job(source, local, len(CONTENT) - 7, engine="nbdcopy")
    object.__setattr__(copied, "advance", lambda done, _: seen.append(done))
    NbdcopyEngine().run(copied)
    assert local.read_bytes() == CONTENT[:-7]
    assert sum(seen) == len(CONTENT) - 7


def test_cancel_while_the_server_hangs(tmp_path: Path) -> None:
    source, local = tmp_path / "source", tmp_path / "local"
    source.write_bytes(CONTENT)
    local.write_bytes(bytes(len(CONTENT)))
    control = Control()
    failed: list[BaseException] = []
    socket = tmp_path / "sock"
    command = ["nbdkit", "-f", "-U", socket, "--filter=delay", "file", source, "rdelay=60"]
    with served(*command, socket=socket) as address:

        def copy() -> None:
            try:
                NbdcopyEngine().run(job(address, local, len(CONTENT), control=control))
            except errors.TransferCancelled as exc:
                failed.append(exc)

        thread = threading.Thread(target=copy)
        before = children()
        thread.start()
        time.sleep(0.5)
        begun = time.monotonic()
        control.cancel()
        thread.join(10)
        assert time.monotonic() - begun < 1
        assert failed
        assert children() == before
