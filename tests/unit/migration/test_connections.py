"""Connections that outlive a process are taken back, by whoever goes on, and nothing secret is recorded of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.migration.session_connector import SECRET, Sessions, export_through_sessions
from tests.unit.migration.world import KINDS, World
from volmig import errors
from volmig.connectors.base import without_secrets
from volmig.manager.backend import Backend
from volmig.migration.connect import CONNECTION, RELEASED, names_given, open_connections
from volmig.migration.move import Move
from volmig.migration.ownership import OwnedMigration
from volmig.migration.steps import Copy, Step, VerifyCopy, steps_for
from volmig.migration.steps.base import Facts
from volmig.migration.steps.data import Connect, Disconnect
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase, Volume
from volmig.store.sql import SqlStore
from volmig.transfer import TransferProgress

KIND = next(kind for kind in KINDS if kind.name == "file-block")


class _Killed(BaseException):
    """The worker dies: nothing of it runs any more."""


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    directory = tmp_path / "sessions"
    directory.mkdir()
    return Sessions(directory)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What this host is called; it can be changed."""
    names = {"host": "here", "ip": "192.0.2.7", "multipath": False, "initiator": "iqn.2026-11.org.example:before"}
    monkeypatch.setattr("volmig.manager.backend.host_properties", lambda _: dict(names))
    return names


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

    world.run(_taken_over(world, migration), before=mend)
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


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_access_is_taken_back_under_the_name_that_it_was_given_to(
    world: World, sessions: Sessions, names: dict[str, Any], is_cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = world.accept()
    if is_cut_off:
        _cut_off_after_access(world.backends.get("left"), monkeypatch)
    _run_until_killed(world, migration, Copy, monkeypatch)
    assert [each for each in sessions.access() if each.endswith(":before")]
    names["initiator"] = "iqn.2026-11.org.example:after"
    world.take_over(migration)
    world.assert_at_destination(migration)
    assert (sessions.open(), sessions.access()) == ([], [])


def test_access_is_taken_back_under_its_name_when_the_migration_is_undone(
    world: World, sessions: Sessions, names: dict[str, Any]
) -> None:
    migration = world.accept()

    class Failing(Copy):
        def run(self, move: Move) -> Facts:
            names["initiator"] = "iqn.2026-11.org.example:after"
            raise errors.TransferFailed(path="x", offset=0, reason="it fails")

    world.run(migration, steps=lambda method: [Failing() if type(s) is Copy else s for s in steps_for(method)])
    world.assert_at_source(migration)
    assert (sessions.open(), sessions.access()) == ([], [])


def test_a_host_without_a_name_is_told_so_and_leaves_nothing(
    world: World, sessions: Sessions, names: dict[str, Any]
) -> None:
    del names["initiator"]
    migration = world.accept()
    owned = world.run(migration)
    assert isinstance(owned.error, errors.HostNotIdentified)
    world.assert_at_source(migration)
    assert sessions.access() == []
    assert _notes(world, migration, "undo connect") == []


def test_access_of_a_journal_without_names_is_taken_back_under_todays(world: World, sessions: Sessions) -> None:
    """An earlier version has begun it."""
    migration = world.accept()

    class Earlier(Connect):
        def intent(self, move: Move) -> Facts:
            return {}

    world.run(migration, steps=lambda method: [Earlier() if type(s) is Connect else s for s in steps_for(method)])
    world.assert_at_destination(migration)
    assert names_given(_journal(world, migration), host="here") == []
    assert (sessions.open(), sessions.access()) == ([], [])


def _cut_off_after_access(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker be killed when a driver has given access, the first time."""
    give = backend.initialize_connection

    def die(volume: Volume, **keywords: Any) -> None:
        give(volume, **keywords)
        monkeypatch.setattr(backend, "initialize_connection", give)
        raise _Killed

    monkeypatch.setattr(backend, "initialize_connection", die)


def _taken_over(world: World, migration: Migration) -> Migration:
    """Have a migration taken from its owner, who is dead, by another worker."""
    with world.store.writing() as transaction:
        transaction.update_migration(transaction.get_migration(migration.id), owner="")
        return transaction.claim_migration(migration.id, owner="second", lease_seconds=60.0)


def _write_behind(world: World, sessions: Sessions) -> None:
    """Write to the volume on its host, while it is read through its export."""
    [link] = (path for path in sessions.directory.glob("session-*") if not path.is_symlink())
    path = Path(world.driver("left").options["file_directory"]) / world.volume.backend_name
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        with path.open("r+b") as file:
            file.write(b"other")
    assert link.read_bytes() != path.read_bytes()


class _Meddling:
    """What happens to the volume at its host in the middle of a migration."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def before(self, name: str) -> Callable[[Method], Sequence[Step]]:
        """Return the steps of which one begins with it."""

        def act_once() -> None:
            act, self._act = self._act, lambda: None
            act()

        def first(step: Step) -> Step:
            class Met(type(step)):  # type: ignore[misc]
                def run(self, move: Move) -> Facts:
                    act_once()
                    return super().run(move)  # type: ignore[no-any-return]

            return Met() if step.name == name else step

        return lambda method: [first(step) for step in steps_for(method)]


@pytest.fixture
def apart(tmp_path: Path, sessions: Sessions) -> World:
    """A world whose source is read through an export that does not show what is written on its host meanwhile."""
    world = World(tmp_path, KIND)
    export_through_sessions(world.driver("left"), sessions, apart=True)
    return world


@pytest.mark.parametrize("step", ["verify", "disconnect"])
def test_what_is_written_behind_the_export_is_found_out(apart: World, sessions: Sessions, step: str) -> None:
    migration = apart.accept()
    meddling = _Meddling(lambda: _write_behind(apart, sessions))
    owned = apart.run(migration, steps=meddling.before(step))
    _assert_refused(apart, sessions, owned)


def test_what_is_written_behind_the_export_during_the_copy_is_found_out(apart: World, sessions: Sessions) -> None:
    migration = apart.accept()

    def meddle_at_progress(owned: OwnedMigration) -> None:
        report = owned.report

        def meddling(progress: TransferProgress) -> None:
            owned.report = report  # type: ignore[method-assign]
            _write_behind(apart, sessions)
            report(progress)

        owned.report = meddling  # type: ignore[method-assign]

    _assert_refused(apart, sessions, apart.run(migration, before=meddle_at_progress))


def test_who_takes_over_a_finished_copy_finds_out_what_is_written_after_its_own_verification(
    apart: World, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = apart.accept()
    _run_until_killed(apart, migration, VerifyCopy, monkeypatch)
    meddling = _Meddling(lambda: _write_behind(apart, sessions))
    owned = apart.run(_taken_over(apart, migration), steps=meddling.before("disconnect"))
    _assert_refused(apart, sessions, owned)


@pytest.mark.parametrize("verify", ["digest", "none"])
def test_who_takes_over_after_the_verification_proves_it_anew(
    apart: World, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    """Nobody watches the source between a worker's death and the takeover."""
    migration = apart.accept(verify=verify)
    _run_until_killed(apart, migration, Disconnect, monkeypatch)
    _write_behind(apart, sessions)
    source = Path(apart.driver("left").options["file_directory"]) / apart.volume.backend_name
    content = source.read_bytes()
    owned = apart.run(_taken_over(apart, migration))
    if verify == "none":
        assert owned.error is None
        [copy] = Path(apart.driver("right").options["file_directory"]).glob("volume-*")
        assert copy.read_bytes() == content
    else:
        assert isinstance(owned.error, errors.VerificationFailed | errors.SourceChanged)
        assert apart.recorded().host == apart.source
        assert source.read_bytes() == content


def test_an_export_that_nobody_writes_behind_is_no_reason_to_fail(apart: World, sessions: Sessions) -> None:
    migration = apart.accept()
    apart.run(migration)
    apart.assert_at_destination(migration)
    assert sessions.open() == []


def _assert_refused(world: World, sessions: Sessions, owned: OwnedMigration) -> None:
    assert isinstance(owned.error, errors.SourceChanged)
    assert world.volume.backend_name in owned.error.fields["path"]
    assert (sessions.open(), sessions.access()) == ([], [])
    assert world.recorded().host == world.source
    assert (len(world.objects()["left"]), world.objects()["right"]) == (1, [])


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
