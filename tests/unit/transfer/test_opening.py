"""Opening ends that keep the copy waiting."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON, until
from volmig import errors
from volmig.transfer import Control, CopyJob, CopyOptions, Verify, copy, copy_data, digest_of, verify_copy
from volmig.transfer.ends import opening
from volmig.transfer.engines.nbdcopy import NbdcopyEngine

from .fakes import descriptors, make_file, pattern
from .nbd_server import NbdServer

MIB = 1024 * 1024


class Silent:
    """Takes connections and says nothing, and cancels a copy once there is one."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.address = f"nbd://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.cancelled_at = 0.0
        self.taken: list[socket.socket] = []
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self._listener.accept()[0])
                if not self.cancelled_at:
                    time.sleep(0.05)
                    self.cancelled_at = time.monotonic()
                    self._control.cancel()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(LONG)
        for one in (self._listener, *self.taken):
            one.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    before = descriptors()
    server = Silent(Control())
    try:
        yield server
    finally:
        server.close()
        # Nobody waits any more for what is being opened; it is let go of when the server is gone.
        until(lambda: descriptors() == before)


def run_nbdcopy(source: Any, destination: Any, control: Control) -> None:
    job = CopyJob(
        source=source,
        destination=destination,
        size_bytes=MIB,
        options=CopyOptions(engine="nbdcopy"),
        control=control,
        advance=lambda *_: None,
        on_process=lambda _: None,
    )
    NbdcopyEngine().run(job)


CALLS: dict[str, Callable[[str, Path, Control], object]] = {
    "copy from": lambda address, path, control: copy(address, path, size_bytes=MIB, control=control),
    "copy to": lambda address, path, control: copy(path, address, size_bytes=MIB, control=control),
    "verify from": lambda address, path, control: verify_copy(address, path, size_bytes=MIB, control=control),
    "verify to": lambda address, path, control: verify_copy(path, address, size_bytes=MIB, control=control),
    "digest": lambda address, _, control: digest_of(address, control=control),
    "nbdcopy from": run_nbdcopy,
    "nbdcopy to": lambda address, path, control: run_nbdcopy(path, address, control),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_a_cancellation_is_seen_while_a_server_says_nothing(silent: Silent, tmp_path: Path, call: str) -> None:
    path = make_file(tmp_path / "file", MIB)
    with pytest.raises(errors.TransferCancelled, match=r"cancel") as raised:
        CALLS[call](silent.address, path, silent._control)
    assert time.monotonic() - silent.cancelled_at < SOON
    assert silent.address in raised.value.hint


def test_a_cancellation_is_seen_when_the_engine_opens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_file(tmp_path / "source", MIB, [(0, MIB)])
    control, goes_on, opened = Control(), threading.Event(), [0]
    real = opening._open
    cancelled_at = [0.0]

    def act(end: Any, **how: Any) -> Any:
        if how["is_destination"]:
            opened[0] += 1
            if opened[0] == 2:
                cancelled_at[0] = time.monotonic()
                control.cancel()
                goes_on.wait(LONG)
        return real(end, **how)

    monkeypatch.setattr(opening, "_open", act)
    before = descriptors()
    with pytest.raises(errors.TransferCancelled):
        copy_data(source, make_file(tmp_path / "to", MIB), size_bytes=MIB, control=control)
    assert time.monotonic() - cancelled_at[0] < SOON
    goes_on.set()
    until(lambda: descriptors() == before)


def test_an_export_is_copied_and_proved(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(pattern(3 * MIB))
    with NbdServer(bytes(4 * MIB)) as server:
        result = copy(source, server.address, size_bytes=3 * MIB, options=CopyOptions(verify=Verify.COMPARE))
        assert bytes(server.content[: 3 * MIB]) == pattern(3 * MIB)
    assert result.destination_digest == digest_of(source)
