"""Changing a volume's record, its type and its snapshots."""

from __future__ import annotations

import json
from typing import Any

import pytest

from volmig import errors
from volmig.cli.app import main
from volmig.cli.base import BaseCommand
from volmig.model import Snapshot, Volume, VolumeStatus

VOLUME = Volume(
    id="v-1",
    name="web",
    size_bytes=1,
    host="h@a#a",
    status=VolumeStatus.AVAILABLE,
    snapshots=(Snapshot(id="s-1", name="before"), Snapshot(id="s-2")),
)


class Engine:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def show_volume(self, volume: str) -> Volume:
        return VOLUME

    def update_volume(self, *args: Any, **kwargs: Any) -> Volume:
        self.calls.append(("update", *args, kwargs))
        return VOLUME

    def retype_volume(self, *args: Any) -> Volume:
        self.calls.append(("retype", *args))
        return VOLUME

    def create_snapshot(self, *args: Any, **kwargs: Any) -> Snapshot:
        self.calls.append(("create", *args, kwargs))
        return VOLUME.snapshots[0]

    def delete_snapshot(self, volume: str, snapshot_id: str) -> None:
        self.calls.append(("delete", volume, snapshot_id))
        if snapshot_id == "nosuch":
            raise errors.RequestInvalid(what="the snapshot", reason="there is none of that id")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(BaseCommand, "open_engine", lambda *_: made)
    return made


def test_set_passes_on_what_is_given(engine: Engine) -> None:
    words = "volume set web --name w --property a=1 --property b=x=y --unset c --unset d"
    assert main(words.split()) == 0
    assert main(["volume", "set", "web", "--name", ""]) == 0
    assert engine.calls == [
        ("update", "web", {"name": "w", "metadata": {"a": "1", "b": "x=y"}, "remove_metadata": ["c", "d"]}),
        ("update", "web", {"name": "", "metadata": {}, "remove_metadata": []}),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("volume set web", "it changes nothing"),
        ("volume set web --property a=1 --unset a", "it is both set and removed"),
        ("volume set web --property a", "not of the form key=value"),
    ],
)
def test_set_refuses_what_makes_no_sense(
    engine: Engine, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err
    assert engine.calls == []


def test_retype(engine: Engine) -> None:
    assert main(["volume", "retype", "web", "fast"]) == 0
    assert engine.calls == [("retype", "web", "fast")]


def test_snapshots(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "snapshot", "create", "web", "--name", "before", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "s-1", "name": "before"}
    assert main(["volume", "snapshot", "list", "web", "-f", "json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["s-1", "s-2"]
    assert main(["volume", "snapshot", "delete", "web", "s-1", "nosuch", "s-2"]) == 2
    told = capsys.readouterr().err
    assert "Deleted snapshot s-1." in told
    assert "Deleted snapshot s-2." in told
    assert "[request-invalid]" in told
    assert [call for call in engine.calls if call[0] == "delete"] == [
        ("delete", "web", name) for name in ("s-1", "nosuch", "s-2")
    ]


def test_an_incomplete_command_of_three_words_is_helped(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "snapshot"]) == 2
    assert "volume snapshot create, volume snapshot delete, volume snapshot list" in capsys.readouterr().err
    assert main(["volume", "snapshot", "crete", "web"]) == 2
    assert "Did you mean: volume snapshot create" in capsys.readouterr().err
