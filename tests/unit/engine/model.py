"""A simple model of volumes, and a machine that compares an engine with it, request by request."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.engine.world import DESTINATION, KIB, SOURCE, World
from tests.unit.waiting import LONG
from volmig import Engine, errors
from volmig.manager.processes import ProcessIdentity
from volmig.model import Migration, Phase, RequestContext, Volume, VolumeStatus
from volmig.testing.faults import DyingStore

HOSTS = (SOURCE, DESTINATION)
DEAD = replace(ProcessIdentity.own("here"), start_time_ticks=1)
SIZES = st.integers(1, 48 * KIB)
WEEK = 7 * 86400

picks = st.integers(0, 7)
hosts = st.sampled_from(HOSTS)
elsewhere = st.sampled_from([True, True, True, True, False])
often = st.sampled_from([True, True, True, False])


@dataclass(kw_only=True)
class Kept:
    """Old storage that a migration has left."""

    migration_id: str
    source: str
    destination: str
    content: bytes


@dataclass(kw_only=True)
class Queued:
    """A migration that nobody runs yet."""

    migration_id: str
    destination: str
    locked: bool
    paused: bool = False


@dataclass(kw_only=True)
class Model:
    """What a volume should be."""

    id: str
    host: str
    content: bytes
    name: str = "data"
    metadata: dict[str, str] = field(default_factory=dict)
    attached: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    volume_type: str | None = None
    kept: list[Kept] = field(default_factory=list)
    queued: Queued | None = None


class EngineMachine(RuleBasedStateMachine):
    """Asks an engine for everything, and knows what the answer must be."""

    store = "memory"

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="volmig-model-")
        self.world = World(Path(self._directory.name), kind="path", store=self.store)
        self.engine = self.world.engine
        for name in ("left", "right"):
            self.world.fake(name).types = {"fast"}
        self.models: list[Model] = []

    def teardown(self) -> None:
        self.world.close()
        self._directory.cleanup()

    # --- tools --------------------------------------------------------------------------------

    def pick(self, number: int) -> Model:
        return self.models[number % len(self.models)]

    def expect(self, refusal: type[errors.VolmigError] | None, request: Callable[[], Any]) -> Any:
        """Make a request, which is refused exactly when it is to be."""
        if refusal is None:
            return request()
        with contextlib.suppress(refusal):
            request()
            raise AssertionError(f"it was granted, and should have been refused as {refusal.__name__}")
        return None

    def refusal(
        self, model: Model, *, snapshots: bool = True, attached: bool = False
    ) -> type[errors.VolmigError] | None:
        """Return what a request is refused as; a migration that does not stand against it has given way then."""
        if model.attached and not attached:
            return errors.VolumeInUse
        if model.snapshots and not snapshots:
            return errors.VolumeHasSnapshots
        if model.queued is not None:
            if model.queued.locked:
                return errors.VolumeMigrating
            model.queued = None
        return None

    def story(self) -> str:
        """Tell what happened to each migration, oldest first."""
        lines = [str(self.world.objects(name)) for name in ("left", "right")]
        for migration in reversed(self.engine.list_migrations()):
            lines.append(f"{migration.id} of {migration.volume_id} -> {migration.destination_id}: {migration.phase}")
            lines.extend(f"  {each.epoch} {each.kind} {each.subject}" for each in self.engine.history(migration.id))
        return "\n".join(lines)

    def record(self, model: Model) -> Volume:
        return self.engine.show_volume(model.id)

    def write(self, model: Model, offset: int, data: bytes) -> None:
        path = self.world.path(self.record(model))
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        model.content = model.content[:offset] + data + model.content[offset + len(data) :]

    # --- volumes ------------------------------------------------------------------------------

    @initialize(size=SIZES)
    def first(self, size: int) -> None:
        self.create(SOURCE, size)

    @precondition(lambda self: len(self.models) < 3)
    @rule(host=hosts, size=SIZES)
    def create(self, host: str, size: int) -> None:
        volume = self.engine.create_volume(host=host, size_bytes=size, name="data")
        self.models.append(Model(id=volume.id, host=host, content=bytes(size)))
        self.write(self.models[-1], 0, b"begin"[:size])

    @precondition(lambda self: self.models)
    @rule(number=picks, place=st.integers(0, 2**20), data=st.binary(min_size=1, max_size=8))
    def use(self, number: int, place: int, data: bytes) -> None:
        model = self.pick(number)
        if model.queued is None:
            offset = place % len(model.content)
            self.write(model, offset, data[: len(model.content) - offset])

    @precondition(lambda self: self.models)
    @rule(number=picks, by=st.integers(-1, 9000))
    def extend(self, number: int, by: int) -> None:
        model = self.pick(number)
        size = len(model.content) + by
        if size < 1:
            self.expect(errors.SizeInvalid, lambda: self.engine.extend_volume(model.id, size))
            return
        refusal = errors.SizeTooSmall if by < 1 else self.refusal(model)
        self.expect(refusal, lambda: self.engine.extend_volume(model.id, size))
        if refusal is None:
            model.content += bytes(by)

    @precondition(lambda self: self.models)
    @rule(number=picks)
    def delete(self, number: int) -> None:
        model = self.pick(number)
        refusal = self.refusal(model, snapshots=False)
        self.expect(refusal, lambda: self.engine.delete_volume(model.id))
        if refusal is None:
            self.models.remove(model)
            # What a migration has kept of it is due at once.
            self.recover()

    @precondition(lambda self: self.models)
    @rule(
        number=picks, key=st.sampled_from("abc"), value=st.sampled_from("xyz"), removed=st.sampled_from(["", "a", "b"])
    )
    def change(self, number: int, key: str, value: str, removed: str) -> None:
        model = self.pick(number)
        model.metadata.pop(removed, None)
        model.metadata[key] = value
        model.name = f"name-{value}"
        self.engine.update_volume(model.id, name=model.name, metadata={key: value}, remove_metadata=[removed])

    @precondition(lambda self: self.models and sum(len(model.attached) for model in self.models) < 2)
    @rule(number=picks)
    def attach(self, number: int) -> None:
        model = self.pick(number)
        refusal = self.refusal(model, attached=True)
        volume = self.expect(refusal, lambda: self.engine.attach_volume(model.id, instance="vm"))
        if volume is not None:
            model.attached.append(volume.attachments[-1].id)

    @precondition(lambda self: any(model.attached for model in self.models))
    @rule(number=picks)
    def detach(self, number: int) -> None:
        model = next(model for model in self.models if model.attached)
        while model.attached:
            attachment = model.attached.pop(number % len(model.attached))
            self.engine.detach_volume(model.id, attachment_id=attachment)
            if number == 0:
                return

    @precondition(lambda self: self.models and sum(len(model.snapshots) for model in self.models) < 2)
    @rule(number=picks)
    def snapshot(self, number: int) -> None:
        model = self.pick(number)
        refusal = self.refusal(model)
        made = self.expect(refusal, lambda: self.engine.create_snapshot(model.id, name="mine"))
        if made is not None:
            model.snapshots.append(made.id)

    @precondition(lambda self: any(model.snapshots for model in self.models))
    @rule(number=picks)
    def delete_snapshot(self, number: int) -> None:
        model = next(model for model in self.models if model.snapshots)
        for snapshot in tuple(model.snapshots[number:] or model.snapshots):
            refusal = self.refusal(model)
            self.expect(refusal, lambda snapshot=snapshot: self.engine.delete_snapshot(model.id, snapshot))
            if refusal is None:
                model.snapshots.remove(snapshot)

    @precondition(lambda self: self.models)
    @rule(number=picks, volume_type=st.sampled_from(["fast", "unknown"]))
    def retype(self, number: int, volume_type: str) -> None:
        model = self.pick(number)
        if model.volume_type == volume_type:
            self.engine.retype_volume(model.id, volume_type)
            return
        refusal = self.refusal(model) or (None if volume_type == "fast" else errors.UnsupportedOperation)
        self.expect(refusal, lambda: self.engine.retype_volume(model.id, volume_type))
        if refusal is None:
            model.volume_type = volume_type

    # --- migrations ---------------------------------------------------------------------------

    def goal(self, model: Model, moves: bool = True) -> str:
        return next(host for host in HOSTS if (host != model.host) is moves)

    def unmovable(self, model: Model, host: str) -> type[errors.VolmigError] | None:
        if model.queued is not None:
            return errors.AlreadyMigrating
        if model.attached:
            return errors.VolumeInUse
        if model.snapshots:
            return errors.VolumeHasSnapshots
        return errors.SamePool if host == model.host else None

    def ended(self, model: Model, final: Migration, *, keeps: bool = False) -> None:
        """Follow a migration to where it has led."""
        if final.phase is Phase.SUCCESS:
            kept = Kept(
                migration_id=final.id, source=final.source, destination=final.destination, content=model.content
            )
            if keeps and final.method.value in ("block", "file"):
                model.kept.append(kept)
            model.host = final.destination

    @precondition(lambda self: self.models)
    @rule(number=picks, moves=elsewhere, forced=often, locked=st.booleans(), keeps=often)
    def migrate(self, number: int, moves: bool, forced: bool, locked: bool, keeps: bool) -> None:
        model = self.pick(number)
        host = self.goal(model, moves)
        self.move(model, host, forced=forced, locked=locked, keeps=keeps)

    def move(self, model: Model, host: str, *, forced: bool = True, locked: bool = False, keeps: bool = False) -> None:
        handle = self.expect(
            self.unmovable(model, host),
            lambda: self.engine.migrate(
                model.id,
                host,
                force_host_copy=forced,
                lock_volume=locked,
                source_retention_seconds=WEEK if keeps else 0,
            ),
        )
        if handle is not None:
            handle.result(LONG)
            self.ended(model, handle.status(), keeps=keeps)

    @precondition(lambda self: self.models)
    @rule(
        number=picks,
        fault=st.sampled_from(
            [
                "create_volume:fail",
                "create_volume:fail_after",
                "initialize_connection:fail",
                "update_migrated_volume:fail",
            ]
        ),
    )
    def migrate_and_fail(self, number: int, fault: str) -> None:
        model = self.pick(number)
        host = self.goal(model)
        if self.unmovable(model, host) is not None:
            return
        driver = self.world.fake("right" if host == DESTINATION else "left")
        driver.faults.add(fault)
        driver.calls.clear()
        handle = self.engine.migrate(model.id, host, force_host_copy=True)
        final = handle.wait(LONG)
        driver.faults.clear()
        if fault.partition(":")[0] not in {method for method, _ in driver.calls}:
            # Where old storage has the volume's name, the copy keeps its own.
            assert model.kept
            self.ended(model, final)
            return
        assert final.phase is Phase.ERROR
        assert final.error_code == "driver-failed"
        assert self.record(model).status_reason

    @precondition(lambda self: self.models)
    @rule(number=picks, moves=elsewhere, locked=st.booleans())
    def queue(self, number: int, moves: bool, locked: bool) -> None:
        model = self.pick(number)
        host = self.goal(model, moves)
        queued = self.expect(
            self.unmovable(model, host), lambda: self.engine.request_migration(model.id, host, lock_volume=locked)
        )
        if queued is not None:
            model.queued = Queued(migration_id=queued.id, destination=host, locked=locked)

    def a_queued(self) -> tuple[Model, Queued]:
        return next((model, model.queued) for model in self.models if model.queued is not None)

    @precondition(lambda self: any(model.queued for model in self.models))
    @rule(how=st.sampled_from(["run", "cancel", "pause", "resume"]))
    def steer(self, how: str) -> None:
        model, queued = self.a_queued()
        migration_id = queued.migration_id
        if how == "pause":
            assert self.engine.pause_migration(migration_id).phase is Phase.PAUSED
            queued.paused = True
        elif how == "cancel":
            self.engine.cancel_migration(migration_id)
            assert self.engine.migration(migration_id).wait(LONG).phase is Phase.CANCELLED
            model.queued = None
        elif how == "run" and queued.paused:
            self.expect(errors.MigrationPaused, lambda: self.engine.run_migration(migration_id))
        else:
            ask = self.engine.run_migration if how == "run" else self.engine.resume_migration
            ask(migration_id).result(LONG)
            model.queued = None
            self.ended(model, self.engine.show_migration(migration_id))

    # --- old storage that is kept -------------------------------------------------------------

    @precondition(lambda self: any(model.kept for model in self.models))
    @rule(number=picks, discard=st.booleans())
    def roll_back(self, number: int, discard: bool) -> None:
        model = next(model for model in self.models if model.kept)
        self.go_back(model, model.kept[number % len(model.kept)], discard)

    @precondition(lambda self: any(self.unmovable(model, self.goal(model)) is None for model in self.models))
    @rule(written=st.binary(max_size=3), discard=st.booleans())
    def there_and_back(self, written: bytes, discard: bool) -> None:
        model = next(model for model in self.models if self.unmovable(model, self.goal(model)) is None)
        self.move(model, self.goal(model), keeps=True)
        if written:
            self.write(model, 0, written[: len(model.content)])
        self.go_back(model, model.kept[-1], discard)

    def go_back(self, model: Model, kept: Kept, discard: bool) -> None:
        refusal: type[errors.VolmigError] | None = errors.RollbackImpossible
        if model.host == kept.destination and len(model.content) == len(kept.content):
            refusal = self.unmovable(model, kept.source)
        handle = self.expect(
            refusal, lambda: self.engine.rollback_migration(kept.migration_id, discard_changes=discard)
        )
        if handle is None:
            return
        final = handle.wait(LONG)
        if kept.content != model.content and not discard:
            assert (final.phase, final.error_code) == (Phase.ERROR, "changes-would-be-lost")
            return
        assert final.phase is Phase.SUCCESS
        model.kept.remove(kept)
        if discard:
            left = Kept(migration_id=final.id, source=model.host, destination=kept.source, content=model.content)
            model.kept.append(left)
        model.host, model.content = kept.source, kept.content

    @precondition(lambda self: any(model.kept for model in self.models))
    @rule(number=picks)
    def retire(self, number: int) -> None:
        model = next(model for model in self.models if model.kept)
        kept = model.kept.pop(number % len(model.kept))
        assert self.engine.retire_migration(kept.migration_id) == []
        self.expect(errors.NothingRetained, lambda: self.engine.retire_migration(kept.migration_id))

    # --- death --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def mortal_engine(self, fail_at: int) -> Any:
        """Yield an engine whose process is taken for dead, and whose store fails from some write on."""
        _, store = self.world.open_engine()
        dying = DyingStore(store, fail_at=fail_at)
        with mock.patch.object(ProcessIdentity, "own", return_value=DEAD):
            engine = Engine(self.world.conf(), store=dying, context=RequestContext(user="the dead"))
            self.world._opened.append((engine, store))
            for name in ("left", "right"):
                self.world.fake(name, engine).types = {"fast"}
            yield engine
            engine.close()

    def recover(self) -> None:
        for migration in self.engine.list_migrations():
            if migration.owner and not migration.phase.is_final:
                with self.world.store.writing() as transaction:
                    transaction.update_migration(transaction.get_migration(migration.id), owner="")
        queued = {model.queued.migration_id for model in self.models if model.queued}
        for handle in self.engine.recover():
            final = handle.wait(LONG)
            if handle.id in queued:
                # Whatever nobody runs is run.
                model = next(model for model in self.models if model.queued and model.queued.migration_id == handle.id)
                model.queued = None
                self.ended(model, final)

    @precondition(lambda self: self.models)
    @rule(number=picks, forced=often, fail_at=st.integers(1, 14))
    def migrate_and_die(self, number: int, forced: bool, fail_at: int) -> None:
        model = self.pick(number)
        host = self.goal(model)
        if self.unmovable(model, host) is not None:
            return
        before = {each.id for each in self.engine.list_migrations()}
        with self.mortal_engine(fail_at) as engine, contextlib.suppress(Exception):
            engine.migrate(model.id, host, force_host_copy=forced).wait(LONG)
        self.recover()
        for migration in self.engine.list_migrations():
            if migration.id not in before and migration.volume_id == model.id:
                assert migration.phase is Phase.SUCCESS
                self.ended(model, migration)

    @precondition(lambda self: self.models)
    @rule(
        number=picks,
        fail_at=st.integers(1, 4),
        what=st.sampled_from(["extend", "delete", "snapshot", "retype", "attach"]),
    )
    def ask_and_die(self, number: int, fail_at: int, what: str) -> None:
        model = self.pick(number)
        if model.queued is not None:
            return
        ask: dict[str, Callable[[Engine], Any]] = {
            "extend": lambda engine: engine.extend_volume(model.id, len(model.content) + 777),
            "delete": lambda engine: engine.delete_volume(model.id),
            "snapshot": lambda engine: engine.create_snapshot(model.id),
            "retype": lambda engine: engine.retype_volume(model.id, "fast"),
            "attach": lambda engine: engine.attach_volume(model.id, instance="vm"),
        }
        with self.mortal_engine(fail_at) as engine, contextlib.suppress(Exception):
            ask[what](engine)
        self.recover()
        try:
            now = self.record(model)
        except errors.VolumeNotFound:
            assert what == "delete"
            assert not model.attached
            assert not model.snapshots
            self.models.remove(model)
            return
        if what == "extend" and now.size_bytes != len(model.content):
            model.content += bytes(777)
        if what == "snapshot":
            model.snapshots.extend(each.id for each in now.snapshots if each.id not in model.snapshots)
        if what == "attach":
            model.attached = [each.id for each in now.attachments]
        if what == "retype" and now.status is VolumeStatus.ERROR:
            # Nobody can say how far it came. Somebody has looked, and found it whole.
            assert "interrupted" in now.status_reason
            self.world.change(now, status=VolumeStatus.AVAILABLE, status_reason="")
        elif what == "retype":
            model.volume_type = now.volume_type

    # --- what is always so --------------------------------------------------------------------

    @invariant()
    def records_are_as_in_the_model(self) -> None:
        rows = self.world.rows()
        assert {each.id for each in rows["volumes"]} == {model.id for model in self.models}
        for model in self.models:
            now = self.record(model)
            assert now.host == model.host
            assert now.size_bytes == len(model.content)
            assert (now.name, now.metadata) == (model.name, model.metadata)
            assert [each.id for each in now.attachments] == model.attached
            assert [each.id for each in now.snapshots] == model.snapshots
            assert now.volume_type == model.volume_type
            assert now.operation == {}
            assert now.migration_id == (model.queued.migration_id if model.queued else None)
            locked = model.queued is not None and model.queued.locked
            free = VolumeStatus.IN_USE if model.attached else VolumeStatus.AVAILABLE
            assert now.status is (VolumeStatus.MAINTENANCE if locked else free)
        queued = {model.queued.migration_id for model in self.models if model.queued}
        assert {held.id for held in rows["reservations"]} == queued
        assert {each.id for each in rows["migrations"] if not each.phase.is_final} == queued

    @invariant()
    def storage_is_as_in_the_model(self) -> None:
        kept = [(each.migration_id, each.source) for model in self.models for each in model.kept]
        retired = self.world.rows()["retired"]
        assert sorted((each.migration_id, each.host) for each in retired) == sorted(kept)
        for name, host in (("left", SOURCE), ("right", DESTINATION)):
            here = [self.world.path(self.record(model)).name for model in self.models if model.host == host]
            old = [each.provider_id or f"volume-{each.name_id}" for each in retired if each.host == host]
            assert self.world.objects(name) == sorted(here + old), self.story()
            hidden = {path.name for path in self.world.pool(name).glob(".snapshot-*")}
            assert hidden == {
                f".snapshot-volume-{each}" for model in self.models if model.host == host for each in model.snapshots
            }
        for model in self.models:
            assert self.world.path(self.record(model)).read_bytes() == model.content
