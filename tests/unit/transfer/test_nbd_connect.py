"""Connecting to NBD servers: how long that may take, and to whom."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, SOON
from volmig import errors
from volmig.transfer.nbd.end import NbdEnd

from .fakes import nothing_left
from .nbd_server import NbdServer


def connect(address: str, seconds: float) -> NbdEnd:
    return NbdEnd.connect(address, reads=True, writes=False, is_destination=False, timeout_seconds=seconds)


class Slow(NbdServer):
    """Shakes hands only after a while."""

    seconds = 0.1

    def _shake_hands(self, one: socket.socket) -> bool:
        self.stopped.wait(self.seconds)
        return super()._shake_hands(one)


def test_all_connections_together_have_the_time_of_one(tmp_path: Path) -> None:
    with nothing_left(), Slow(bytes(4096), directory=tmp_path) as server:
        with pytest.raises(errors.TransferFailed, match="timed out"):
            # Enough for any one of the four, and even for two.
            connect(server.address, 0.25)
        assert server.connections <= 3
        connect(server.address, LONG).close()


def test_a_host_that_is_not_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real, answered = socket.getaddrinfo, threading.Event()

    def hang(host: Any, *more: Any, **how: Any) -> Any:
        if how.get("flags") == socket.AI_NUMERICHOST:
            return real(host, *more, **how)
        answered.wait(LONG)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    begun = time.monotonic()
    try:
        with pytest.raises(errors.TransferFailed, match=r"finding the host storage\.invalid takes too long") as raised:
            connect("nbd://storage.invalid/x", 0.3)
    finally:
        answered.set()
    assert time.monotonic() - begun < SOON
    assert isinstance(raised.value.__cause__, TimeoutError)


def test_a_host_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", absent)
    with pytest.raises(errors.TransferFailed, match="not known"):
        connect("nbd://storage.invalid/x", 5)


@pytest.fixture
def mute() -> Iterator[tuple[str, int]]:
    """An address of this host whose queue of connections is full, so that connecting to it hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            assert filler.connect_ex(place) in (0, errno.EINPROGRESS)
        time.sleep(0.05)
        yield place
        for filler in fillers:
            filler.close()


def test_all_addresses_of_a_host_together_have_the_time_of_one(
    mute: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def several(*_: Any, flags: int = 0, **__: Any) -> Any:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        asked.append(flags)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", mute)] * 200

    monkeypatch.setattr(socket, "getaddrinfo", several)
    begun = time.monotonic()
    with nothing_left(), pytest.raises(errors.TransferFailed, match="timed out"):
        connect("nbd://storage.invalid/x", 0.2)
    assert time.monotonic() - begun < SOON
    assert len(asked) == 1


def test_all_connections_lead_to_the_server_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One name with several servers behind it, which tell the same of exports that are not the same."""
    with NbdServer(b"1" * 4096) as one, NbdServer(b"2" * 4096) as other:
        servers = [one, other]
        real = socket.getaddrinfo

        def turns(host: str, port: int, *_: Any, **how: Any) -> Any:
            if host != "storage.invalid":
                return real(host, port, **how)
            if how.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "not a number")
            servers.reverse()
            place = ("127.0.0.1", int(servers[0].address.rsplit(":", 1)[1].strip("/")))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)]

        monkeypatch.setattr(socket, "getaddrinfo", turns)
        with connect("nbd://storage.invalid/", 10) as end:
            assert end.concurrency == 4
            assert end.identity == ("nbd", "storage.invalid", "10809", "")
        assert sorted([one.connections, other.connections]) == [0, 4]


def test_the_next_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()
    with nothing_left(), NbdServer(bytes(4096)) as server:
        served = ("127.0.0.1", int(server.address.rsplit(":", 1)[1].strip("/")))
        real = socket.getaddrinfo

        def both(host: str, port: int, *_: Any, **how: Any) -> Any:
            if host != "storage.invalid":
                return real(host, port, **how)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in (closed, served)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        connect("nbd://storage.invalid/", 10).close()
