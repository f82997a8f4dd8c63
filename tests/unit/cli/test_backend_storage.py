"""``volmig backend setup`` and ``teardown``: what they ask of the engine, and of the one who types them."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from volmig import errors
from volmig.cli.app import main
from volmig.cli.base import BaseCommand
from volmig.manager.pools import BackendInfo

INFO = BackendInfo(
    name="loop",
    address="h@loop",
    driver="lvm",
    driver_version="1",
    vendor_name="volmig",
    storage_protocol="local",
    volume_backend_name="loop",
    up=True,
    down_reason="",
    capabilities=(),
    pools=(),
    calls_hanging=0,
)


class Engine:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: errors.VolmigError | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def setup_backend(self, name: str) -> BackendInfo:
        self.calls.append(("setup", name))
        return INFO

    def teardown_backend(self, name: str, *, delete_data: bool = False) -> None:
        if self.error:
            raise self.error
        self.calls.append(("teardown", name, delete_data))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(BaseCommand, "open_engine", lambda *_: made)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return made


def test_setup_shows_the_backend(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backend", "setup", "loop", "-f", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["state"]) == ("loop", "up")
    assert engine.calls == [("setup", "loop")]


def test_teardown_keeps_the_data_and_says_so(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backend", "teardown", "loop"]) == 0
    assert engine.calls == [("teardown", "loop", False)]
    assert "`volmig backend setup loop` brings it back" in capsys.readouterr().err


def test_deleting_needs_no_terminal_with_yes(engine: Engine) -> None:
    assert main(["backend", "teardown", "loop", "--delete-data", "--yes"]) == 0
    assert engine.calls == [("teardown", "loop", True)]


def test_deleting_without_a_terminal_is_refused(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backend", "teardown", "loop", "--delete-data"]) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert engine.calls == []


@pytest.mark.parametrize(("answer", "goes_on"), [("loop\n", True), ("y\n", False), ("\n", False), ("", False)])
def test_deleting_asks_for_the_name(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    goes_on: bool,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["backend", "teardown", "loop", "--delete-data"]) == (0 if goes_on else 2)
    assert "All data of backend 'loop' will be deleted" in capsys.readouterr().err
    assert engine.calls == ([("teardown", "loop", True)] if goes_on else [])


def test_what_is_in_use_is_told(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.error = errors.BackendInUse(backend="loop", users="open logical volumes: volume-1")
    assert main(["backend", "teardown", "loop"]) == 2
    assert "[backend-in-use]" in capsys.readouterr().err
