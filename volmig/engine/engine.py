"""The face of volmig for programs that embed it."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from oslo_config import cfg

from volmig import errors
from volmig.drivers.base import Capability
from volmig.manager.backends import Backends
from volmig.manager.identities import StorageIdentities
from volmig.manager.pools import BackendInfo, PoolInfo
from volmig.manager.volumes import VolumeManager, new_volume
from volmig.migration.doubts import settle_doubts
from volmig.migration.ownership import LeaseKeeper, OwnedMigration
from volmig.migration.request import MigrationRequest, accept
from volmig.migration.retire import delete_retired
from volmig.migration.settings import Settings
from volmig.migration.workers import WorkerPool
from volmig.model import JournalEntry, Migration, Phase, RequestContext, Volume
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction
from volmig.transfer import boottime_seconds

__all__ = ["BackendInfo", "Engine", "MigrationEvent", "MigrationHandle", "PoolInfo"]

LOG = logging.getLogger(__name__)

_ABANDONED_SECONDS = 10.0
"""How long a migration must have been without a worker before those who wait for it are told."""

_POLL_SECONDS = 0.1
"""How often the record of a migration that another process runs is read while waiting for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationEvent:
    """A state of a migration as it went by."""

    migration: Migration
    """Its record, with live figures of progress."""

    @property
    def stage(self) -> str:
        """What the transfer is doing: ``copy``, ``flush`` or ``verify``; empty outside of it."""
        return self.migration.stage


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
        self._leases = LeaseKeeper(self._store, self._settings, owner=owner)
        self._workers = WorkerPool(self._store, self._backends, self._settings, self._leases)
        self._volumes = VolumeManager(self._store, self._backends, settle=self._settle)
        self._closed = False
        self._ended = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._workers.cancel_all()
        self.close()

    def close(self) -> None:
        """Take no new work, wait for the migrations that run here, and let go of everything.

        Leaving a ``with`` block by an exception cancels them first, as far as they can be.
        """
        if self._closed:
            return
        self._closed = True
        self._workers.close()
        self._leases.close()
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

    def volume_path(self, volume: str) -> str:
        """Return the path on this host at which a volume's data is.

        :raises volmig.errors.UnsupportedOperation: when its backend offers none.
        """
        found = self.show_volume(volume)
        backend = self._backends.of(found)
        if not backend.can(Capability.LOCAL_PATH):
            raise errors.UnsupportedOperation(backend=backend.name, operation="a path to its volumes")
        return str(backend.initialize_connection(found)["data"]["device_path"])

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
        :raises volmig.errors.VolmigError: when anything stands against it; nothing is changed then.
        """
        self._check_open()
        request = self._request(volume, host, force_host_copy, lock_volume, engine, verify, bandwidth_limit_bytes)
        with self._workers.admission():
            claimed_at = boottime_seconds()
            migration = accept(
                self._store,
                self._backends,
                request,
                self._context,
                owner=self._leases.owner,
                lease_seconds=self._settings.lease_seconds,
            )
            owned = self._workers.start(migration, claimed_at=claimed_at)
        return MigrationHandle(self, migration.id, owned)

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
    ) -> Migration:
        """Accept a migration as :meth:`migrate` does, but leave it ``queued`` for :meth:`run_migration`."""
        self._check_open()
        request = self._request(volume, host, force_host_copy, lock_volume, engine, verify, bandwidth_limit_bytes)
        return accept(self._store, self._backends, request, self._context)

    def run_migration(self, migration_id: str) -> MigrationHandle:
        """Run, in this process, a migration that nobody runs: one that is queued, or whose worker is gone.

        :raises volmig.errors.LeaseLost: when a worker owns it, or it has ended.
        """
        with self._workers.admission():
            claimed_at = boottime_seconds()
            with self._store.writing() as transaction:
                migration = transaction.claim_migration(
                    migration_id, owner=self._leases.owner, lease_seconds=self._settings.lease_seconds
                )
            owned = self._workers.start(migration, claimed_at=claimed_at)
        return MigrationHandle(self, migration.id, owned)

    def migration(self, migration_id: str) -> MigrationHandle:
        """Return a handle to any migration, also one that another process runs.

        :raises volmig.errors.MigrationNotFound: when there is none of that id.
        """
        self.show_migration(migration_id)
        return MigrationHandle(self, migration_id, self._leases.get(migration_id))

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

    def cancel_migration(self, migration_id: str) -> Migration:
        """Ask for a migration to be undone, and return at once.

        It is ``cancelled`` when its destination is gone and the volume was seen at its source. A migration that no
        worker runs is undone by this engine.

        :raises volmig.errors.CancelTooLate: when it has ended or has come to its commit point.
        """
        self._check_open()
        with self._store.writing() as transaction:
            migration = transaction.request_cancel(migration_id, requested_by=self._context.actor)
        owned = self._leases.get(migration_id)
        if owned is None:
            self.take_over_if_abandoned(migration)
        else:
            owned.record(replace(owned.migration, cancel_requested_by=migration.cancel_requested_by))
            self._workers.hurry(owned)
        return migration

    def take_over_if_abandoned(self, migration: Migration) -> bool:
        """Run a migration in this process if no worker owns it, or its worker's lease has expired; say whether."""
        return self.is_abandoned(migration) and not self._closed and bool(self._adopt([migration]))

    def is_abandoned(self, migration: Migration, *, grace_seconds: float = 0.0) -> bool:
        """Say whether a migration is unfinished and has no worker.

        :param grace_seconds: how long it must have been so: one that waits for its first worker has none for a moment.
        """
        if migration.phase.is_final:
            return False
        with self._view() as view:
            now = view.now()
        since = migration.lease_expires_at if migration.owner else migration.updated_at
        return since is None or (now - since).total_seconds() >= grace_seconds

    def recover(self) -> list[MigrationHandle]:
        """Take over all migrations whose worker is gone, delete storage that was left for later, and settle doubts.

        :returns: the migrations that were taken over; each goes on or is undone in a thread of this process.
        """
        self._check_open()
        settle_doubts(self._store, self._backends)
        delete_retired(self._store, self._backends)
        unfinished = [phase for phase in Phase if not phase.is_final]
        return self._adopt(self.list_migrations(MigrationQuery(phases=unfinished)))

    # --- inside -------------------------------------------------------------------------------

    def _view(self) -> AbstractContextManager[ReadTransaction]:
        # What runs to its end while the engine is being closed can still be looked at.
        if self._ended:
            raise errors.EngineClosed
        return self._store.reading()

    def _adopt(self, migrations: Sequence[Migration]) -> list[MigrationHandle]:
        adopted = []
        for migration in migrations:
            try:
                adopted.append(self.run_migration(migration.id))
            except errors.LeaseLost:
                LOG.debug("migration %s is being run by %s", migration.id, migration.owner)
        return adopted

    def _request(
        self,
        volume: str,
        host: str,
        force_host_copy: bool,
        lock_volume: bool,
        engine: str | None,
        verify: str | None,
        bandwidth_limit_bytes: int | None,
    ) -> MigrationRequest:
        limit = self._defaults.bandwidth_limit_bytes if bandwidth_limit_bytes is None else bandwidth_limit_bytes
        return MigrationRequest(
            volume_id=self.show_volume(volume).id,
            destination=host,
            force_host_copy=force_host_copy,
            lock_volume=lock_volume,
            engine=engine or self._defaults.engine,
            verify=verify or self._defaults.verify,
            bandwidth_limit_bytes=limit,
        )

    def _settle(self, volume: Volume, operation: str) -> None:
        """Make a migration give way to another request: cancel it, or wait for the end of one that is nearly done."""
        if volume.migration_id is None:
            return
        migration = self.show_migration(volume.migration_id)
        if migration.lock_volume:
            raise errors.VolumeMigrating(
                operation=operation, volume=volume.id, migration=migration.id, reason="it has locked the volume"
            )
        try:
            self.cancel_migration(migration.id)
        except errors.CancelTooLate:
            LOG.info("migration %s is about to end; %s waits for it", migration.id, operation)
        try:
            self.migration(migration.id).wait(self._settings.lease_seconds * 2)
        except TimeoutError as error:
            raise errors.VolumeMigrating(
                operation=operation, volume=volume.id, migration=migration.id, reason="it does not end"
            ) from error

    def _check_open(self) -> None:
        if self._closed:
            raise errors.EngineClosed


class MigrationHandle:
    """Follows one migration, and steers it. Made by :class:`Engine`."""

    def __init__(self, engine: Engine, migration_id: str, owned: OwnedMigration | None) -> None:
        self.id = migration_id
        self._engine = engine
        self._owned = owned

    def status(self) -> Migration:
        """Return the migration as it is now; live where this process runs it."""
        if self._owned is not None and not self._owned.is_lost:
            return self._owned.migration
        return self._engine.show_migration(self.id)

    def events(self, interval_seconds: float = 0.25) -> Iterator[MigrationEvent]:
        """Yield the migration at each change, at most once an interval, until its end; the last one is final."""
        told: Migration | None = None
        while True:
            seen = self.status()
            ended = self._has_ended(seen)
            if ended:
                yield MigrationEvent(migration=self.status())
                return
            if seen != told:
                yield MigrationEvent(migration=seen)
                told = seen
            began = time.monotonic()
            if self._owned is None:
                self._look_after(seen)
                time.sleep(interval_seconds)
            elif not self._owned.wait_for_change(seen, None):
                time.sleep(max(0.0, interval_seconds - (time.monotonic() - began)))

    def wait(self, timeout_seconds: float | None = None) -> Migration:
        """Wait for the end and return the migration, however it ended.

        :raises TimeoutError: when it does not end in time.
        :raises volmig.errors.MigrationAbandoned: when its worker, of another process, is gone.
        :raises volmig.errors.VolmigError: when this process could not bring it to an end, and left it for recovery.
        """
        if self._owned is not None:
            if not self._owned.wait_for_end(timeout_seconds):
                raise TimeoutError(f"migration {self.id} did not end within {timeout_seconds} seconds")
            final = self.status()
            if not final.phase.is_final and self._owned.error is not None:
                raise self._owned.error
            return final
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (migration := self.status()).phase.is_final:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"migration {self.id} did not end within {timeout_seconds} seconds")
            self._look_after(migration)
            time.sleep(_POLL_SECONDS)
        return migration

    def result(self, timeout_seconds: float | None = None) -> Volume:
        """Wait for the end and return the volume at its destination.

        :raises TimeoutError: when it does not end in time.
        :raises volmig.errors.MigrationCancelled: when it was cancelled.
        :raises volmig.errors.VolmigError: what it failed of.
        """
        final = self.wait(timeout_seconds)
        if final.phase is Phase.SUCCESS:
            return self._engine.show_volume(final.volume_id)
        if self._owned is not None and self._owned.error is not None:
            raise self._owned.error
        if final.phase is Phase.CANCELLED:
            raise errors.MigrationCancelled(migration=final.id, requested_by=final.cancel_requested_by)
        raise errors.MigrationFailed(
            migration=final.id, error_code=final.error_code, reason=final.error_message, hint=final.error_hint
        )

    def cancel(self) -> Migration:
        """Ask for it to be undone; see :meth:`Engine.cancel_migration`."""
        return self._engine.cancel_migration(self.id)

    def _look_after(self, migration: Migration) -> None:
        """Undo a migration that was cancelled and has no worker, and tell of any other that has none.

        :raises volmig.errors.MigrationAbandoned: when nobody runs it.
        """
        if migration.phase.is_final:
            return
        if migration.cancel_requested_by:
            self._engine.take_over_if_abandoned(migration)
        elif self._engine.is_abandoned(migration, grace_seconds=_ABANDONED_SECONDS):
            raise errors.MigrationAbandoned(migration=migration.id, reason="the one that did is gone")

    def _has_ended(self, migration: Migration) -> bool:
        return migration.phase.is_final if self._owned is None else self._owned.ended


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
