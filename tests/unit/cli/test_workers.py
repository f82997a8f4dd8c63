"""What the commands say of migrations whose worker is gone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from volmig import errors
from volmig.cli.app import main
from volmig.cli.base import BaseCommand
from volmig.cli.columns import is_abandoned, migration_value
from volmig.model import Migration, Phase

from .fabricated import Handle, event, migration

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(seconds=1)
LATER = NOW + timedelta(seconds=1)
ABANDONED = errors.MigrationAbandoned(migration="m", reason="its lease ran out")


@pytest.mark.parametrize(
    ("fields", "worker"),
    [
        ({"owner": "h:1", "lease_expires_at": LATER}, "running"),
        ({"owner": "h:1", "lease_expires_at": NOW}, "gone since 2026-11-20T12:00:00.000Z"),
        ({"owner": "h:1", "lease_expires_at": EARLIER}, "gone since 2026-11-20T11:59:59.000Z"),
        ({"owner": "h:1", "lease_expires_at": None}, "gone"),
        ({"phase": Phase.QUEUED}, "none"),
        ({"phase": Phase.SUCCESS, "owner": "h:1", "lease_expires_at": EARLIER}, ""),
        ({"phase": Phase.ERROR}, ""),
    ],
)
def test_the_worker_s_column(fields: dict[str, Any], worker: str) -> None:
    made = migration(**({"phase": Phase.MIGRATING} | fields))
    assert migration_value(made, "worker", now=NOW) == worker
    assert is_abandoned(made, now=NOW) is worker.startswith("gone")


@pytest.mark.parametrize(("lease", "figures"), [(LATER, (5.0, 7.0)), (EARLIER, (None, None))])
def test_the_figures_of_a_dead_worker_are_unknown(lease: datetime, figures: tuple[Any, Any]) -> None:
    made = migration(owner="h:1", lease_expires_at=lease, rate_bytes=5.0, eta_seconds=7.0, bytes_done=3)
    assert tuple(migration_value(made, name, now=NOW) for name in ("rate_bytes", "eta_seconds")) == figures
    assert migration_value(made, "bytes_done", now=NOW) == 3


class Followed(Handle):
    """A handle whose migration has a record."""

    record: Migration
    end: errors.VolmigError | None = None

    def status(self) -> Migration:
        return self.record

    def wait(self) -> Migration:
        if self.end is not None:
            raise self.end
        return self.record

    def result(self) -> Any:
        raise AssertionError("its end was never seen")


def followed(script: list[Any], record: Migration, end: errors.VolmigError | None = None) -> Followed:
    handle = Followed(script, id=record.id)
    handle.record, handle.end = record, end
    return handle


class StubEngine:
    """Has migrations and handles of them."""

    def __init__(self, *handles: Followed) -> None:
        self.handles = {handle.id: handle for handle in handles}

    def __enter__(self) -> StubEngine:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def migration(self, migration_id: str) -> Followed:
        return self.handles[migration_id]

    def cancel_migration(self, migration_id: str) -> Migration:
        return self.handles[migration_id].record

    show_migration = cancel_migration

    def kept_storage(self, migration_id: str) -> list[Any]:
        return []

    def history(self, migration_id: str) -> list[Any]:
        return []

    def list_migrations(self, query: Any) -> list[Migration]:
        return [handle.record for handle in self.handles.values()]

    def recover(self) -> list[Followed]:
        return list(self.handles.values())


@pytest.fixture
def engine_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*handles: Followed) -> None:
        monkeypatch.setattr(BaseCommand, "open_engine", lambda *_: StubEngine(*handles))

    return use


def abandoned(migration_id: str = "m", **fields: Any) -> Migration:
    values: dict[str, Any] = {"owner": "h:1", "lease_expires_at": EARLIER, "rate_bytes": 5.0, "eta_seconds": 7.0}
    return migration(id=migration_id, **(values | fields))


@pytest.mark.parametrize("words", [["migration", "watch", "m"], ["migration", "cancel", "--wait", "m"]], ids=" ".join)
def test_following_an_abandoned_migration_ends(
    engine_with: Any, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    engine_with(followed([event(), ABANDONED], abandoned()))
    assert main(words) == 4
    told = capsys.readouterr().err
    assert "volmig: No worker runs migration m: its lease ran out. [migration-abandoned]" in told
    assert "hint: `volmig migration recover`" in told


def test_showing_an_abandoned_migration(engine_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine_with(followed([], abandoned(lease_expires_at=datetime(2001, 2, 3, tzinfo=UTC))))
    assert main(["migration", "show", "m", "-f", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["worker"] == "gone since 2001-02-03T00:00:00.000Z"
    assert (shown["rate_bytes"], shown["eta_seconds"]) == (None, None)
    assert main(["migration", "show", "m"]) == 0
    assert "gone since 2001-02-03T00:00:00.000Z" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "said"), [(1, "The worker of 1 of them is gone"), (2, "The workers of 2 of them are")]
)
def test_listing_abandoned_migrations(
    engine_with: Any, capsys: pytest.CaptureFixture[str], count: int, said: str
) -> None:
    records = [migration(Phase.SUCCESS, id="over"), *(abandoned(f"m{number}") for number in range(count))]
    records = [
        record if not record.owner else abandoned(record.id, lease_expires_at=EARLIER.replace(year=2001))
        for record in records
    ]
    engine_with(*(followed([], record) for record in records))
    assert main(["migration", "list", "--long", "-f", "json"]) == 0
    shown = capsys.readouterr()
    assert [row["worker"][:4] for row in json.loads(shown.out)] == ["", *["gone"] * count]
    assert said in shown.err
    assert "volmig migration recover" in shown.err


def test_nothing_is_said_when_no_worker_is_gone(engine_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine_with(followed([], migration(Phase.SUCCESS)))
    assert main(["migration", "list"]) == 0
    assert capsys.readouterr().err == ""


def test_recovery_follows_what_it_was_given(engine_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ended = migration(Phase.SUCCESS, id="m1")
    undone = migration(Phase.ERROR, id="m2", error_code="x")
    engine_with(followed([event(), event(Phase.SUCCESS)], ended), followed([event(Phase.ERROR)], undone))
    assert main(["migration", "recover", "-f", "json"]) == 0
    shown = capsys.readouterr()
    assert [(row["id"], row["phase"]) for row in json.loads(shown.out)] == [("m1", "success"), ("m2", "error")]
    assert "Taking over migration m1" in shown.err


def test_one_that_cannot_be_recovered_does_not_keep_the_others_back(
    engine_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = errors.StoreBusy(database="d", seconds=30)
    engine_with(
        followed([event(), ABANDONED], abandoned("m1")),
        followed([event()], abandoned("m2"), busy),
        followed([event(Phase.SUCCESS)], migration(Phase.SUCCESS, id="m3")),
    )
    assert main(["migration", "recover", "-f", "json"]) == 4
    shown = capsys.readouterr()
    assert [row["phase"] for row in json.loads(shown.out)] == ["migrating", "migrating", "success"]
    assert "[migration-abandoned]" in shown.err
    assert "[store-busy]" in shown.err


def test_nothing_to_recover(engine_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine_with()
    assert main(["migration", "recover", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
