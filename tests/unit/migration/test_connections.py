"""Connections that outlive a process are taken back, by whoever goes on, and nothing secret is recorded of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.migration.session_connector import SECRET, Sessions, export_through_sessions
from tests.unit.migration.world import KINDS, World
from volmig import errors
from volmig.connectors.base import without_secrets
from volmig.migration.connect import CONNECTION, RELEASED, open_connections
from volmig.migration.move import Move
from volmig.migration.ownership import OwnedMigration
from volmig.migration.steps import Copy, Step, VerifyCopy, steps_for
from volmig.migration.steps.base import Facts
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase
from volmig.store.sql import SqlStore

KIND = next(kind for kind in KINDS if kind.name == "file-block")


class _Killed(BaseException):
    """The worker dies: nothing of it runs any more."""


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    directory = tmp_path / "sessions"
    directory.mkdir()
    return Sessions(directory)


@pytest.fixture
def world(tmp_path: Path, sessions: Sessions) -> World:
    world = World(tmp_path, KIND)
    for name in ("left", "right"):
        export_through_sessions(world.driver(name), sessions)
    return world


def _journal(world: World, migration: Migration) -> list[JournalEntry]:
    with world.store.reading() as view:
        return list(view.read_journal(migration.id))


def _notes(world: World, migration: Migration, subject: str) -> list[JournalEntry]:
    return [each for each in _journal(world, migration) if each.subject == subject and each.kind is EntryKind.NOTE]


def _run_until_killed(world: World, migration: Migration, dying: type[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a migration until a step begins in which the worker is killed, so that it cannot clear up."""

    class Dying(dying):  # type: ignore[misc, valid-type]
        def run(self, move: Move) -> Facts:
            if dying is VerifyCopy:
                super().run(move)
            raise _Killed

    def steps(method: Method) -> Sequence[Step]:
        return [Dying() if type(step) is dying else step for step in steps_for(method)]

    with monkeypatch.context() as patch:
        patch.setattr("volmig.migration.runner.MigrationRunner._close_ends", lambda _: None)
        with pytest.raises(_Killed):
            world.run(migration, steps=steps)


def test_a_migration_through_sessions_leaves_none_and_ends_them_before_their_targets(
    world: World, sessions: Sessions
) -> None:
    migration = world.accept()
    world.run(migration)
    world.assert_at_destination(migration)
    assert sessions.open() == []
    events = sessions.events()
    for target in {event.partition(":")[2] for event in events if event.startswith("connect")}:
        own = [event.partition(":")[0] for event in events if event.endswith(target)]
        assert own[own.index("connect") :][:3] == ["connect", "disconnect", "terminate"]
        assert (own.count("connect"), own.count("disconnect")) == (1, 1)
    assert len(_notes(world, migration, CONNECTION)) == len(_notes(world, migration, RELEASED)) == 2


@pytest.mark.parametrize("dying", [Copy, VerifyCopy])
def test_who_takes_over_ends_the_sessions_of_a_killed_worker_first(
    world: World, sessions: Sessions, dying: type[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = world.accept()
    _run_until_killed(world, migration, dying, monkeypatch)
    assert len(sessions.open()) == 2
    before = len(sessions.events())
    world.take_over(migration)
    world.assert_at_destination(migration)
    assert sessions.open() == []
    assert [event.partition(":")[0] for event in sessions.events()[before:]][:2] == ["disconnect", "disconnect"]


def test_an_undo_after_a_kill_ends_the_sessions_too(
    world: World, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = world.accept()
    _run_until_killed(world, migration, Copy, monkeypatch)
    with world.store.writing() as transaction:
        transaction.request_cancel(migration.id, requested_by="someone")
    world.take_over(migration)
    world.assert_at_source(migration, phase=Phase.CANCELLED)
    assert sessions.open() == []


def test_a_connection_that_fails_halfway_is_taken_back(world: World, sessions: Sessions) -> None:
    (sessions.directory / "fail").touch()
    migration = world.accept()
    owned = world.run(migration)
    assert owned.migration.phase is Phase.ERROR
    world.assert_at_source(migration)
    assert sessions.open() == []
    assert any(event.startswith("disconnect") for event in sessions.events())


def test_a_session_that_does_not_end_at_once_is_ended_in_the_end(
    world: World, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = world.accept()
    _run_until_killed(world, migration, Copy, monkeypatch)
    (sessions.directory / "refuse").touch()

    def mend(_: OwnedMigration) -> None:
        (sessions.directory / "refuse").unlink()

    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration.id), owner="")
        claimed = transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)
    world.run(claimed, before=mend)
    world.assert_at_destination(migration)
    assert sessions.open() == []


def test_a_worker_that_has_lost_its_lease_leaves_the_sessions_to_the_next(world: World, sessions: Sessions) -> None:
    migration = world.accept()

    class Losing(Copy):
        def run(self, move: Move) -> Facts:
            with world.store.writing() as transaction:
                transaction.update_migration(transaction.get_migration(migration.id), owner="")
                transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)
            loss = errors.LeaseLost(migration=migration.id, owner=migration.owner, epoch=migration.epoch)
            move.owned.lose(loss)
            raise loss

    world.run(migration, steps=lambda method: [Losing() if type(s) is Copy else s for s in steps_for(method)])
    # On one host it is one and the same session, which the next owner may be using by now.
    assert len(sessions.open()) == 2


def test_connections_of_other_hosts_are_left_alone() -> None:
    def note(subject: str, **data: object) -> JournalEntry:
        return JournalEntry(migration_id="m", kind=EntryKind.NOTE, subject=subject, actor="a", epoch=1, data=data)

    entries = [
        note(CONNECTION, id="1", host="here"),
        note(CONNECTION, id="2", host="there"),
        note(CONNECTION, id="3", host="here"),
        note(RELEASED, connection="1"),
    ]
    assert [facts["id"] for facts in open_connections(entries, host="here")] == ["3"]


def test_no_secret_is_in_the_store_the_journal_or_the_log(
    tmp_path: Path, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    with contextlib.closing(SqlStore(f"sqlite:///{directory}/volmig.db")) as store, caplog.at_level(logging.DEBUG):
        world = World(tmp_path, KIND, store=store)
        for name in ("left", "right"):
            export_through_sessions(world.driver(name), sessions)
        migration = world.accept()
        world.run(migration)
        world.assert_at_destination(migration)
        assert "auth_password" not in repr(_journal(world, migration))
    assert SECRET not in caplog.text
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    assert all(SECRET.encode() not in path.read_bytes() for path in files)


def test_what_is_named_like_a_secret_is_left_out_at_any_depth() -> None:
    data = {"auth_password": "x", "portals": [{"dhchap_secret": "y", "port": 1}], "a": ("b",), "Keyring": "z"}
    assert without_secrets(data) == {"portals": [{"port": 1}], "a": ["b"]}
