"""The engine itself: what is configured, and one method for each thing that can be asked of it."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from oslo_config import cfg

from volmig import doctor, errors
from volmig.drivers.base import Capability
from volmig.engine.handle import MigrationHandle
from volmig.manager.backends import Backends
from volmig.manager.identities import StorageIdentities
from volmig.manager.pools import BackendInfo, PoolInfo
from volmig.manager.storage import setup_storage, teardown_storage
from volmig.manager.volumes import VolumeManager, new_volume
from volmig.migration.manager import MigrationManager
from volmig.migration.ownership import OwnedMigration
from volmig.migration.recovery import Recovery
from volmig.migration.request import MigrationRequest
from volmig.migration.rollback import RollbackRequest
from volmig.migration.settings import Settings
from volmig.model import JournalEntry, Migration, RequestContext, RetiredObject, Snapshot, Volume
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction

LOG = logging.getLogger(__name__)


class Engine:
    """Manages volumes on the configured backends and migrates them, in this process.

    ::

        with Engine(volmig.conf.load(["volmig.conf"])) as engine:
            volume = engine.manage_volume("/srv/images/disk.img")
            engine.migrate(volume.id, "host@fast#fast").result()

    Methods may be called from several threads, and several engines, also of other processes, may use one store.
    Arguments named *volume* take a volume's id or its name, if only one volume has it.

    :param conf: the configuration, from :func:`volmig.conf.load`.
    :param store: where volumes and migrations are recorded, and who closes it; None for the database that the
        configuration names, which the engine closes.
    :param context: who asks; recorded in the history.
    :raises volmig.errors.ConfigurationError: naming what is wrong. A backend whose storage is out of order is no
        such error: it is down, with the reason, until it works.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, *, store: Store | None = None, context: RequestContext | None = None
    ) -> None:
        self._settings = Settings.from_conf(conf)
        self._defaults = conf.transfer
        self._context = context or RequestContext(user=_user_name())
        self._owns_store = store is None
        self._store = _open_store(conf) if store is None else store
        try:
            self._backends = Backends.from_conf(conf, identities=StorageIdentities(self._store))
        except BaseException:
            if self._owns_store:
                self._store.close()
            raise
        owner = f"{conf.host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._migrations = MigrationManager(
            self._store, self._backends, self._settings, context=self._context, owner=owner
        )
        self._volumes = VolumeManager(self._store, self._backends, settle=self._migrations.make_way)
        self._recovery = Recovery(self._store, self._backends, self._settings, self._migrations, self._volumes)
        self._closed = False
        self._ended = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._migrations.cancel_all()
        self.close()

    def close(self, *, hand_over: bool = False) -> None:
        """Take no new work, wait for the migrations that run here, and let go of everything.

        Leaving a ``with`` block by an exception cancels them first, as far as they can be.

        :param hand_over: do not wait for copies: let go of their migrations, which stay as they are, so that another
            process that recovers goes on with each, and with its copy where it was. For a service that is told to stop.
            What is past its commit point, or is being moved by a driver, is waited for.
        """
        if self._closed:
            return
        self._closed = True
        self._recovery.close()
        self._migrations.close(hand_over=hand_over)
        self._ended = True
        if self._owns_store:
            self._store.close()

    # --- backends -----------------------------------------------------------------------------

    def list_backends(self) -> list[BackendInfo]:
        """Return all enabled backends with their state and pools."""
        return [self._with_reservations(backend.info()) for backend in self._backends]

    def show_backend(self, name: str) -> BackendInfo:
        """Return one backend. :raises volmig.errors.BackendNotFound:"""
        return self._with_reservations(self._backends.get(name).info())

    def setup_backend(self, name: str) -> BackendInfo:
        """Make the storage of a backend as it is configured, or find it again; return the backend.

        :raises volmig.errors.UnsupportedOperation: when its driver makes no storage.
        """
        self._check_open()
        return self._with_reservations(setup_storage(self._backends.get(name)))

    def teardown_backend(self, name: str, *, delete_data: bool = False) -> None:
        """Let go of the storage that :meth:`setup_backend` has made, which finds it again. Succeeds when it is down.

        :param delete_data: delete it, with all that is in it.
        :raises volmig.errors.BackendInUse: when something is in use there, or, with *delete_data*, on record.
        :raises volmig.errors.UnsupportedOperation: when its driver makes no storage.
        """
        self._check_open()
        teardown_storage(self._store, self._backends.get(name), delete_data=delete_data)

    def list_pools(self) -> list[PoolInfo]:
        """Return the pools of all backends that are in service."""
        return [pool for backend in self.list_backends() for pool in backend.pools]

    def _with_reservations(self, info: BackendInfo) -> BackendInfo:
        with self._view() as view:
            pools = tuple(
                replace(pool, reserved_bytes=sum(held.size_bytes for held in view.list_reservations(pool.address)))
                for pool in info.pools
            )
        return replace(info, pools=pools)

    # --- volumes ------------------------------------------------------------------------------

    def create_volume(
        self,
        *,
        host: str,
        size_bytes: int,
        name: str = "",
        volume_type: str | None = None,
        project_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make a new volume.

        :param host: pool, as ``host@backend#pool``.
        :param size_bytes: exact size, at least 1.
        :param name: the user's name for it; need not be unique.
        :raises volmig.errors.VolmigError: when it cannot be made; nothing is left behind then.
        """
        self._check_open()
        volume = new_volume(
            host=host,
            size_bytes=size_bytes,
            name=name,
            volume_type=volume_type,
            project_id=project_id,
            metadata=metadata,
        )
        return self._volumes.create(volume)

    def show_volume(self, volume: str) -> Volume:
        """Return a volume.

        :raises volmig.errors.VolumeNotFound: when there is none of that id or name.
        :raises volmig.errors.VolumeNameAmbiguous: when several have the name.
        """
        with self._view() as view:
            try:
                return view.get_volume(volume)
            except errors.VolumeNotFound:
                found = view.list_volumes(VolumeQuery(name=volume)) if volume else ()
        if not found:
            raise errors.VolumeNotFound(volume=volume)
        if len(found) > 1:
            ids = ", ".join(each.id for each in found[:10]) + (", …" if len(found) > 10 else "")
            raise errors.VolumeNameAmbiguous(volume=volume, count=len(found), ids=ids)
        return found[0]

    def list_volumes(self, query: VolumeQuery | None = None) -> Sequence[Volume]:
        """Return volumes, oldest first."""
        with self._view() as view:
            return view.list_volumes(query or VolumeQuery())

    def delete_volume(self, volume: str) -> None:
        """Delete a volume and its data. An unlocked migration of it is cancelled first."""
        self._check_open()
        self._volumes.delete(self.show_volume(volume).id)

    def extend_volume(self, volume: str, new_size_bytes: int) -> Volume:
        """Enlarge a volume to *new_size_bytes*. An unlocked migration of it is cancelled first."""
        self._check_open()
        return self._volumes.extend(self.show_volume(volume).id, new_size_bytes)

    def manage_volume(
        self,
        reference: str,
        *,
        host: str | None = None,
        name: str = "",
        volume_type: str | None = None,
        project_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Volume:
        """Take over an object that volmig did not make, such as an image file. Its data stays as it is.

        :param reference: the object's name, or its path.
        :param host: pool that has it; None to ask all pools.
        """
        self._check_open()
        volume = new_volume(
            host=host or "",
            size_bytes=1,
            name=name,
            volume_type=volume_type,
            project_id=project_id,
            metadata=metadata,
        )
        return self._volumes.manage(reference, volume)

    def unmanage_volume(self, volume: str) -> None:
        """Forget a volume; its storage and data stay. An unlocked migration of it is cancelled first."""
        self._check_open()
        self._volumes.unmanage(self.show_volume(volume).id)

    def attach_volume(self, volume: str, *, instance: str, mountpoint: str = "") -> Volume:
        """Record that *instance* uses a volume, which is then ``in-use`` and not migrated."""
        self._check_open()
        return self._volumes.attach(self.show_volume(volume).id, instance=instance, mountpoint=mountpoint)

    def detach_volume(self, volume: str, *, attachment_id: str | None = None) -> Volume:
        """Record that a use of a volume has ended; None for its only one."""
        self._check_open()
        return self._volumes.detach(self.show_volume(volume).id, attachment_id=attachment_id)

    def update_volume(
        self,
        volume: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        remove_metadata: Collection[str] = (),
    ) -> Volume:
        """Change what volmig only records of a volume. A migration goes on meanwhile, and keeps the change.

        :param name: the new name; None to keep it.
        :param metadata: entries to add or to replace.
        :param remove_metadata: keys of entries to remove; a key that is not there does no harm.
        """
        self._check_open()
        return self._volumes.change(
            self.show_volume(volume).id, name=name, metadata=metadata or {}, remove_metadata=remove_metadata
        )

    def retype_volume(self, volume: str, volume_type: str) -> Volume:
        """Give a volume another type, which its backend may have to adapt its storage to.

        An unlocked migration of it is cancelled first.

        :raises volmig.errors.UnsupportedOperation: when its backend cannot do that in place.
        """
        self._check_open()
        return self._volumes.retype(self.show_volume(volume).id, volume_type)

    def create_snapshot(self, volume: str, *, name: str = "") -> Snapshot:
        """Make a snapshot of a volume. An unlocked migration of it is cancelled first.

        :raises volmig.errors.UnsupportedOperation: when its backend makes none.
        """
        self._check_open()
        return self._volumes.create_snapshot(self.show_volume(volume).id, name=name)

    def delete_snapshot(self, volume: str, snapshot_id: str) -> None:
        """Delete a snapshot of a volume. :raises volmig.errors.RequestInvalid: when it has none of that id."""
        self._check_open()
        self._volumes.delete_snapshot(self.show_volume(volume).id, snapshot_id)

    def volume_path(self, volume: str) -> str:
        """Return the path on this host at which a volume's data is.

        :raises volmig.errors.UnsupportedOperation: when its backend offers none.
        """
        found = self.show_volume(volume)
        backend = self._backends.of(found)
        if backend.can(Capability.LOCAL_PATH):
            info = backend.look_at(found)
            if info["driver_volume_type"] == "local":
                return str(info["data"]["device_path"])
        raise errors.UnsupportedOperation(backend=backend.name, operation="a path to its volumes")

    # --- migrations ---------------------------------------------------------------------------

    def migrate(
        self,
        volume: str,
        host: str,
        *,
        force_host_copy: bool = False,
        lock_volume: bool = False,
        engine: str | None = None,
        verify: str | None = None,
        bandwidth_limit_bytes: int | None = None,
        source_retention_seconds: int | None = None,
    ) -> MigrationHandle:
        """Begin to move a volume, in a thread of this process.

        The volume keeps its id, name, size, owner, metadata and type. It stays whole at its source until the data
        has arrived at the destination and is verified.

        :param host: destination pool, as ``host@backend#pool``.
        :param force_host_copy: copy the data by this host even where the driver could move the volume itself.
        :param lock_volume: hold the volume in status ``maintenance``, so that no other request can end the migration.
        :param engine: transfer engine; None for the configured one.
        :param verify: ``none``, ``digest`` or ``compare``; None for the configured one.
        :param bandwidth_limit_bytes: bytes a second at most, 0 for no limit; None for the configured one.
        :param source_retention_seconds: how long the old storage is kept afterwards for :meth:`rollback_migration`, 0
            to delete it at once; None for the configured time. A driver that moves a volume itself leaves none.
        :raises volmig.errors.VolmigError: when anything stands against it; nothing is changed then.
        """
        self._check_open()
        request = self._request(
            volume,
            host,
            force_host_copy=force_host_copy,
            lock_volume=lock_volume,
            engine=engine,
            verify=verify,
            bandwidth_limit_bytes=bandwidth_limit_bytes,
            source_retention_seconds=source_retention_seconds,
        )
        return self._handle(self._migrations.begin(request))

    def request_migration(
        self,
        volume: str,
        host: str,
        *,
        force_host_copy: bool = False,
        lock_volume: bool = False,
        engine: str | None = None,
        verify: str | None = None,
        bandwidth_limit_bytes: int | None = None,
        source_retention_seconds: int | None = None,
    ) -> Migration:
        """Accept a migration as :meth:`migrate` does, but leave it ``queued`` for :meth:`run_migration`."""
        self._check_open()
        request = self._request(
            volume,
            host,
            force_host_copy=force_host_copy,
            lock_volume=lock_volume,
            engine=engine,
            verify=verify,
            bandwidth_limit_bytes=bandwidth_limit_bytes,
            source_retention_seconds=source_retention_seconds,
        )
        return self._migrations.queue(request)

    def run_migration(self, migration_id: str) -> MigrationHandle:
        """Run, in this process, a migration that nobody runs: one that is queued, or whose worker is gone.

        :raises volmig.errors.MigrationPaused: when it is paused.
        :raises volmig.errors.LeaseLost: when a worker owns it, or it has ended.
        """
        return self._handle(self._migrations.run(migration_id))

    def migration(self, migration_id: str) -> MigrationHandle:
        """Return a handle to any migration, also one that another process runs.

        :raises volmig.errors.MigrationNotFound: when there is none of that id.
        """
        self.show_migration(migration_id)
        return MigrationHandle(self, migration_id, self._migrations.owned(migration_id))

    def show_migration(self, migration_id: str) -> Migration:
        """Return a migration as recorded. :raises volmig.errors.MigrationNotFound:"""
        with self._view() as view:
            return view.get_migration(migration_id)

    def list_migrations(self, query: MigrationQuery | None = None) -> Sequence[Migration]:
        """Return migrations, newest first."""
        with self._view() as view:
            return view.list_migrations(query or MigrationQuery())

    def history(self, migration_id: str) -> Sequence[JournalEntry]:
        """Return all that happened to a migration, oldest first. :raises volmig.errors.MigrationNotFound:"""
        with self._view() as view:
            view.get_migration(migration_id)
            return view.read_journal(migration_id)

    # --- steering a migration -----------------------------------------------------------------

    def cancel_migration(self, migration_id: str) -> Migration:
        """Ask for a migration to be undone, and return at once.

        It is ``cancelled`` when its destination is gone and the volume was seen at its source. A migration that no
        worker runs is undone by this engine.

        :raises volmig.errors.CancelTooLate: when it has ended or has come to its commit point.
        """
        self._check_open()
        return self._migrations.cancel(migration_id)

    def pause_migration(self, migration_id: str) -> Migration:
        """Ask for a migration to be held until it is resumed, and return at once.

        Its worker stops the copy and lets go of both volumes and of its own turn; then the phase is ``paused``. What
        the engine ``chunked`` has copied is kept; others begin anew when it is resumed. The volume stays locked.

        :raises volmig.errors.PauseImpossible: when its driver moves the volume, or it is too late.
        """
        self._check_open()
        return self._migrations.pause(migration_id)

    def resume_migration(self, migration_id: str) -> MigrationHandle:
        """Let a paused migration go on, in a thread of this process.

        One whose worker has not come to pausing it yet goes on there.

        :raises volmig.errors.MigrationEnded: when it has ended.
        """
        self._check_open()
        resumed = self._migrations.resume(migration_id)
        if resumed.owner and not self._migrations.is_abandoned(resumed):
            return self.migration(migration_id)
        return self.run_migration(migration_id)

    def request_resume(self, migration_id: str) -> Migration:
        """Let a paused migration go on as :meth:`resume_migration` does, but leave it to :meth:`run_migration`."""
        self._check_open()
        return self._migrations.resume(migration_id)

    def limit_migration(self, migration_id: str, bandwidth_limit_bytes: int) -> Migration:
        """Change how many bytes a second a migration may move, 0 for no limit; a running copy follows at once.

        :raises volmig.errors.MigrationEnded: when it has ended.
        """
        self._check_open()
        return self._migrations.limit(migration_id, bandwidth_limit_bytes)

    def rollback_migration(self, migration_id: str, *, discard_changes: bool = False) -> MigrationHandle:
        """Bring a volume back to the old storage that a successful migration has kept.

        That is a migration of its own: the volume and its old storage are compared, byte for byte, the record is
        changed, and what the volume leaves is deleted.

        :param discard_changes: give up what was written since: only the old storage is proved, by the digest of the
            migration, and what the volume leaves is kept for as long as that was, so that this can be rolled back too.
        :raises volmig.errors.RollbackImpossible: saying why.
        """
        self._check_open()
        return self._handle(self._migrations.begin_rollback(_rollback(migration_id, discard_changes)))

    def request_rollback(self, migration_id: str, *, discard_changes: bool = False) -> Migration:
        """Accept a rollback as :meth:`rollback_migration` does, but leave it ``queued`` for :meth:`run_migration`."""
        self._check_open()
        return self._migrations.queue_rollback(_rollback(migration_id, discard_changes))

    def kept_storage(self, migration_id: str) -> Sequence[RetiredObject]:
        """Return the old storage of a migration that still waits for its deletion, with its time as ``delete_after``.

        :raises volmig.errors.MigrationNotFound:
        """
        with self._view() as view:
            view.get_migration(migration_id)
            return view.list_retired(migration_id=migration_id)

    def retire_migration(self, migration_id: str) -> list[RetiredObject]:
        """Delete the old storage that a migration has kept, before its time; it cannot be rolled back afterwards.

        :returns: what could not be deleted yet, with the reason as its ``last_error``; it is tried again.
        :raises volmig.errors.NothingRetained: when none is kept.
        """
        self._check_open()
        return self._migrations.retire(migration_id)

    # --- recovery -----------------------------------------------------------------------------

    def take_over_if_abandoned(self, migration: Migration) -> bool:
        """Run a migration in this process if no worker owns it, or its worker's lease has expired; say whether."""
        return not self._closed and self._migrations.take_over_if_abandoned(migration) is not None

    def is_abandoned(self, migration: Migration, *, grace_seconds: float = 0.0) -> bool:
        """Say whether a migration is unfinished and has no worker, though it should have one.

        :param grace_seconds: how long it must have been so: one that waits for its first worker has none for a moment.
        """
        return self._migrations.is_abandoned(migration, grace_seconds=grace_seconds)

    def recover(self) -> list[MigrationHandle]:
        """Take over all migrations whose worker is gone, end what other requests have left unfinished whose process is
        gone, delete old storage that is due, and settle doubts.

        :returns: the migrations that were taken over; each goes on or is undone in a thread of this process.
        """
        self._check_open()
        return [self._handle(owned) for owned in self._recovery.recover()]

    def keep_recovering(self, interval_seconds: float | None = None) -> None:
        """Recover now, and again and again, in a thread of this process, until the engine is closed.

        A service that embeds volmig calls it once after it has started. Repeated calls change nothing.

        :param interval_seconds: pause between two rounds; None for the configured one.
        """
        self._check_open()
        self._recovery.keep(interval_seconds)

    # --- what is out of order -----------------------------------------------------------------

    def examine(
        self, *, backend: str | None = None, volume: str | None = None, grace_seconds: float = doctor.GRACE_SECONDS
    ) -> doctor.Report:
        """Compare what is on record with what is in storage, and return what is out of order. Changes nothing.

        :param backend: only this backend; None for all.
        :param volume: only this volume; None for all.
        :param grace_seconds: how old something must be to be thought left over, and not just being made.
        """
        self._check_open()
        volume_id = None if volume is None else self.show_volume(volume).id
        return doctor.examine(
            self._store, self._backends, backend=backend, volume_id=volume_id, grace_seconds=grace_seconds
        )

    def mend(
        self, findings: Iterable[doctor.Finding], *, grace_seconds: float = doctor.GRACE_SECONDS
    ) -> list[doctor.Mended]:
        """Settle those of the findings that can be settled safely; each is looked at again right before.

        What might be the only copy of something is never deleted.
        """
        self._check_open()
        return doctor.mend(
            self._store, self._backends, findings, actor=self._context.actor, grace_seconds=grace_seconds
        )

    # --- inside -------------------------------------------------------------------------------

    def _view(self) -> AbstractContextManager[ReadTransaction]:
        # What runs to its end while the engine is being closed can still be looked at.
        if self._ended:
            raise errors.EngineClosed
        return self._store.reading()

    def _handle(self, owned: OwnedMigration) -> MigrationHandle:
        return MigrationHandle(self, owned.migration.id, owned)

    def _request(
        self,
        volume: str,
        host: str,
        *,
        force_host_copy: bool,
        lock_volume: bool,
        engine: str | None,
        verify: str | None,
        bandwidth_limit_bytes: int | None,
        source_retention_seconds: int | None,
    ) -> MigrationRequest:
        limit = self._defaults.bandwidth_limit_bytes if bandwidth_limit_bytes is None else bandwidth_limit_bytes
        kept = self._settings.source_retention_seconds if source_retention_seconds is None else source_retention_seconds
        found = self.show_volume(volume)
        self._volumes.finish_abandoned(found)
        return MigrationRequest(
            volume_id=found.id,
            destination=host,
            force_host_copy=force_host_copy,
            lock_volume=lock_volume,
            engine=engine or self._defaults.engine,
            verify=verify or self._defaults.verify,
            bandwidth_limit_bytes=limit,
            source_retention_seconds=kept,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise errors.EngineClosed


def _rollback(migration_id: str, discard_changes: bool) -> RollbackRequest:
    return RollbackRequest(migration_id=migration_id, discard_changes=discard_changes)


def _open_store(conf: cfg.ConfigOpts) -> Store:
    # SQLAlchemy is only loaded by who uses this store.
    from volmig.store.sql import SqlStore

    state_path = Path(conf.state_path)
    if conf.database.connection == f"sqlite:///{state_path}/volmig.db":
        try:
            state_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.ConfigOptionInvalid(
                option="state_path", group="DEFAULT", source="the directory cannot be made", reason=error
            ) from error
    return SqlStore(conf.database.connection, busy_timeout_seconds=conf.database.busy_timeout_seconds)


def _user_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user id without a name, as in some containers.
        return str(os.getuid())
