"""One backend as the core sees it: its driver behind timeouts and checks of what it returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar, cast

from volmig import errors
from volmig.connectors.host import host_properties
from volmig.drivers.base import (
    Capability,
    ConnectionInfo,
    ConnectorProperties,
    MigrationHost,
    PoolStats,
    StoredObject,
    VolumeDriver,
    VolumeUpdate,
)
from volmig.manager.answers import Answers
from volmig.manager.calls import HangingCalls, call_with_timeout
from volmig.manager.claims import Claims, Connection
from volmig.manager.deletions import Deletion, Deletions
from volmig.manager.identities import StorageIdentities
from volmig.manager.neighbours import require_own_pools
from volmig.manager.policies import POLICIES, CallTimes
from volmig.manager.pools import BackendInfo, PoolInfo, StatsMalformed, parse_pools
from volmig.manager.retries import Retries
from volmig.manager.setup import SetUp
from volmig.model import PoolAddress, RequestContext, Volume

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_MAY_BE_LEFT_OUT = frozenset({"update_migrated_volume", "recover_migration", "remove_export"})
"""Methods for which the contract gives NotImplementedError a meaning."""

_SETUP = ("do_setup", "check_for_setup_error")


class Backend:
    """A backend: calls its driver, and lets only sound answers through.

    Every method raises :class:`volmig.errors.DriverTimeout` when the driver does not answer in time,
    :class:`volmig.errors.DriverFailed` for the driver's own exceptions and
    :class:`volmig.errors.DriverContractBroken` when its answer is not what the contract says. What is repeated, and how
    long a call may take, is said in :data:`volmig.manager.policies.POLICIES`.
    """

    def __init__(
        self, driver: VolumeDriver, *, name: str, driver_name: str, identities: StorageIdentities | None = None
    ) -> None:
        self._identities = identities
        self.name = name
        self.driver = driver
        self._driver_name = driver_name
        self._times = CallTimes.from_options(driver.options, group=name)
        self._retries = Retries.from_options(driver.options)
        self._answers = Answers(driver=driver_name, backend=name)
        self._hanging = HangingCalls(name)
        self._claims = Claims(name)
        self._deletions = Deletions(name)
        self._setup = SetUp(self._set_up, backend=name)
        self.earlier: Sequence[Backend] = ()
        """The backends that are enabled before it."""

    @property
    def host(self) -> str:
        """Name of the host that drives it."""
        return self.driver.host

    def host_names(self) -> dict[str, Any]:
        """Return what this host is called at present by those that show volumes to it; nothing of it is secret."""
        return host_properties(self.driver.host)

    def _connector(self, names: Mapping[str, Any] | None, *, only_look: bool) -> ConnectorProperties:
        """Return how the driver is told of this host, when it is to open a volume or to look at it."""
        names = self.host_names() if names is None else names
        return cast(ConnectorProperties, {**names, "host": self.driver.host, "only_look": only_look})

    @property
    def timeout_seconds(self) -> float:
        """How long any call of the driver may take, other than ``migrate_volume``."""
        return self._times.longest_seconds

    def call_seconds(self, method: str) -> float:
        """Return how long one call of a method may take."""
        return self._times.seconds[method]

    def hanging_calls(self) -> dict[str, int]:
        """Return how many calls were given up and still run, by method."""
        return self._hanging.by_method()

    def offers(self, method: str) -> bool:
        """Say whether the driver has a method of its own, in place of the contract's default."""
        return getattr(type(self.driver), method) is not getattr(VolumeDriver, method)

    def can(self, capability: Capability) -> bool:
        """Say whether the driver claims a capability."""
        return capability in self.driver.capabilities

    # --- state --------------------------------------------------------------------------------

    def require_set_up(self, wait_seconds: float | None = None) -> None:
        """Set the driver up unless that has been done; a failure is told each time until it is mended.

        :param wait_seconds: how long to wait when another caller is about it; None for the time of ``do_setup``.
        :raises volmig.errors.BackendDown: saying what is wrong with the backend.
        """
        self._setup.require(self.call_seconds("do_setup") if wait_seconds is None else wait_seconds)

    def _set_up(self) -> None:
        for method in _SETUP:
            if method in self._hanging.by_method():
                # Another one beside it would only hang as well, and a driver need not expect it.
                reason = f"its {method} did not end in its time, and still runs"
                raise errors.BackendDown(backend=self.name, reason=reason)
        recorded = self._recall_identity()
        try:
            self._call("do_setup", lambda: self.driver.do_setup(RequestContext()))
            self._call("check_for_setup_error", self.driver.check_for_setup_error)
        except errors.BackendDown:
            raise
        except errors.VolmigError as error:
            raise errors.BackendDown(backend=self.name, reason=error.message) from error
        found: Any = self.driver.storage_identity
        require_own_pools(self, self.earlier, self._fresh_pool_stats)
        if self._identities and isinstance(found, str) and found != recorded:
            self._identities.remember(f"{self.host}@{self.name}", found)

    @property
    def identity(self) -> str | None:
        """What its storage is known by, found by this process or on record; None when it is not known."""
        found = self.driver.storage_identity
        if found is None and self._identities is not None:
            return self._identities.on_record(f"{self.host}@{self.name}")
        return found

    def _recall_identity(self) -> str | None:
        """Tell the driver which storage it should find; return it."""
        recorded = self._identities.recall(f"{self.host}@{self.name}") if self._identities else None
        self.driver.storage_identity = recorded
        return recorded

    def setup_storage(self) -> None:
        """Have the driver make its storage, or find it again, and set the driver up on it.

        :raises volmig.errors.UnsupportedOperation: when the driver makes none.
        """
        method = "setup_storage"
        self._recall_identity()
        self._setup.forget()
        self._answers.nothing(method, self._call(method, lambda: self.driver.setup_storage(RequestContext())))
        self.require_set_up()

    def teardown_storage(self, *, delete_data: bool) -> None:
        """Have the driver take its storage down, also where it cannot be set up. It is set up anew by the next call.

        :raises volmig.errors.BackendInUse: when something is in use there.
        :raises volmig.errors.UnsupportedOperation: when the driver makes none.
        """
        method = "teardown_storage"
        self._recall_identity()

        def take_down() -> None:
            return self.driver.teardown_storage(RequestContext(), delete_data=delete_data)

        try:
            self._answers.nothing(method, self._call(method, take_down))
        finally:
            self._setup.forget()

    def pool_stats(self) -> Sequence[PoolStats]:
        """Return what the driver says of its pools. :raises volmig.errors.BackendDown: as :meth:`pools`."""
        self.require_set_up(self.call_seconds("get_volume_stats"))
        return self._fresh_pool_stats()

    def _fresh_pool_stats(self) -> Sequence[PoolStats]:
        stats = self._fresh_stats()
        self._checked_pools(stats)
        return cast(Sequence[PoolStats], stats["pools"])

    def pools(self) -> dict[str, PoolInfo]:
        """Return the backend's pools by name, with fresh figures.

        :raises volmig.errors.BackendDown: when the backend is out of service.
        """
        stats = self._stats()
        return self._checked_pools(stats)

    def info(self) -> BackendInfo:
        """Return the backend's state; one that cannot be used is told as down, with the reason."""
        pools: tuple[PoolInfo, ...] = ()
        stats: Mapping[str, Any] = {}
        reason = ""
        try:
            stats = self._stats()
            pools = tuple(self._checked_pools(stats).values())
        except errors.VolmigError as error:
            reason = error.fields["reason"] if isinstance(error, errors.BackendDown) else error.message
        return BackendInfo(
            name=self.name,
            address=f"{self.host}@{self.name}",
            driver=self._driver_name,
            driver_version=self.driver.driver_version,
            vendor_name=self.driver.vendor_name,
            storage_protocol=str(stats.get("storage_protocol", "")),
            volume_backend_name=str(stats.get("volume_backend_name", self.name)),
            up=not reason,
            down_reason=str(reason),
            capabilities=tuple(sorted(capability.value for capability in self.driver.capabilities)),
            pools=pools,
            calls_hanging=self._hanging.total,
        )

    def list_objects(self, pool: str) -> tuple[StoredObject, ...]:
        """Return what lies in a pool; see the driver's contract.

        :param pool: name of the pool, without the backend's address.
        :raises volmig.errors.UnsupportedOperation: when the driver does not offer it.
        """
        answer = self._ask("list_objects", lambda: self.driver.list_objects(pool))
        return self._answers.objects("list_objects", answer)

    def as_destination(self, pool: str) -> MigrationHost:
        """Return how another driver is told of a pool of this backend as the destination of its own migration.

        :raises volmig.errors.PoolNotFound: when there is no such pool.
        """
        stats = self._stats()
        pools = self._checked_pools(stats)
        if pool not in pools:
            raise errors.PoolNotFound(backend=self.name, pool=pool, known=", ".join(sorted(pools)))
        own = next(entry for entry in stats["pools"] if entry["pool_name"] == pool)
        shared = {key: value for key, value in stats.items() if key != "pools"}
        return {"host": pools[pool].address, "capabilities": {**shared, **own}}

    def _stats(self) -> Mapping[str, Any]:
        self.require_set_up(self.call_seconds("get_volume_stats"))
        return self._fresh_stats()

    def _fresh_stats(self) -> Mapping[str, Any]:
        stats: Any = self._call("get_volume_stats", lambda: self.driver.get_volume_stats(refresh=True))
        if not isinstance(stats, Mapping):
            raise self._answers.broken("get_volume_stats", f"it returned {type(stats).__name__}, not a mapping")
        if stats.get("down_reason"):
            raise errors.BackendDown(backend=self.name, reason=stats["down_reason"])
        return stats

    def _checked_pools(self, stats: Mapping[str, Any]) -> dict[str, PoolInfo]:
        try:
            return parse_pools(stats, self.driver.address)
        except StatsMalformed as error:
            raise self._answers.broken("get_volume_stats", str(error)) from error

    # --- volumes ------------------------------------------------------------------------------

    def create_volume(
        self, volume: Volume, *, when_late: Callable[[Volume, str | None], object] | None = None
    ) -> VolumeUpdate:
        """Make the object.

        :param when_late: called when the call was given up and the object is there after all, with the volume as the
            driver is told of the object, and its identity. By then the object may belong to somebody else: the call
            also succeeds when it finds one. None only logs it.
        """
        method = "create_volume"

        def hand_over(answer: Any) -> None:
            self._hand_over(volume, answer, when_late)

        update = self._ask(method, lambda: self.driver.create_volume(volume), when_late=hand_over)
        return self._answers.update(method, update)

    def _hand_over(self, volume: Volume, answer: Any, when_late: Callable[[Volume, str | None], object] | None) -> None:
        """Tell of an object that a call has made after it was given up; called in the thread of that call."""
        try:
            made = placed(volume, self._answers.update("create_volume", answer))
        except errors.DriverContractBroken as error:
            LOG.warning("%s", error)
            made = volume
        if when_late is None:
            LOG.error("%s: object %s was made after its time; volmig doctor finds it", self.name, made.backend_id)
            return

        def identify() -> str | None:
            return self._answers.identity("identify_object", self.driver.identify_object(made))

        identity: str | None = None
        try:
            identity = self._repeat("identify_object", identify)
        except errors.VolumeObjectMissing:
            return
        except Exception as error:  # noqa: BLE001
            # It is on record without, and can be told from others by its name.
            LOG.warning("%s: object %s cannot be identified: %s", self.name, made.backend_id, error)
        when_late(made, identity)

    def identify_object(self, volume: Volume) -> str | None:
        answer = self._ask("identify_object", lambda: self.driver.identify_object(volume))
        return self._answers.identity("identify_object", answer)

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        """Remove the object of *volume* unless another one has taken its name; see the driver's contract. First, what
        shows the object to other hosts is taken back.

        :raises volmig.errors.StorageBusy: when an earlier call for this object was given up, and still runs.
        :raises volmig.errors.VolumeInUse: when a host is seen to use it.
        """
        self._delete("delete_object", volume, identity, lambda: self.driver.delete_object(volume, identity))

    def _delete(self, method: str, volume: Volume, identity: str | None, function: Callable[[], None]) -> None:
        deletion = Deletion(host=volume.host, name=volume.provider_id or volume.backend_id, identity=identity)

        def delete() -> None:
            with self._deletions.at_work(deletion):
                return function()

        def unexport() -> None:
            with self._deletions.at_work(deletion):
                return self.driver.remove_export(RequestContext(), volume)

        self._deletions.require_none(deletion)
        if self.offers("remove_export") and self._is_still(volume, identity):
            # What a process that was killed has left would hold the object for ever. A driver of an earlier contract
            # may say by an error that there is nothing: the deletion itself tells.
            with suppress(errors.VolumeObjectMissing, errors.UnsupportedOperation, NotImplementedError):
                self._answers.nothing("remove_export", self._ask("remove_export", unexport))
        self._answers.nothing(method, self._ask(method, delete))

    def _is_still(self, volume: Volume, identity: str | None) -> bool:
        """Say whether the object of a name is the one that is meant: the exports are those of whatever has it."""
        if identity is None:
            return True
        try:
            return self.identify_object(volume) == identity
        except errors.VolumeObjectMissing:
            return False

    def check_object(self, volume: Volume) -> None:
        """Let the driver compare a volume's object with its record, where that has no effects.

        :raises volmig.errors.OperatorError: when it is not there, or has another size.
        """
        if self.can(Capability.LOCAL_PATH):
            self.look_at(volume)
        elif self.can(Capability.FILE_MODE):
            self.open_volume(volume, "rb").close()
        elif not self.volume_exists(volume):
            location = f"{volume.backend_name} in {volume.host}"
            raise errors.VolumeObjectMissing(volume=volume.id, location=location)

    def look_at(self, volume: Volume) -> ConnectionInfo:
        """Return how the driver would reach a volume, which it compares with its record, without connecting to it."""
        info = self.initialize_connection(volume, only_look=True)
        self.terminate_connection(volume, only_look=True)
        return info

    def stored_size(self, volume: Volume) -> int:
        """Return the size in bytes that the object of *volume* has in its pool; it is not below the volume's."""
        size = self._answers.size(
            "stored_size", self.driver.stored_size(volume.size_bytes, PoolAddress.parse(volume.host).pool)
        )
        if size < volume.size_bytes:
            raise self._answers.broken("stored_size", f"it said {size} for {volume.size_bytes} bytes")
        return size

    def delete_volume(self, volume: Volume) -> None:
        """Remove the object of *volume*, as :meth:`delete_object`."""
        self._delete("delete_volume", volume, None, lambda: self.driver.delete_volume(volume))

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        answer = self._ask("extend_volume", lambda: self.driver.extend_volume(volume, new_size_bytes))
        self._answers.nothing("extend_volume", answer)

    def volume_exists(self, volume: Volume) -> bool:
        answer = self._ask("volume_exists", lambda: self.driver.volume_exists(volume))
        return self._answers.truth("volume_exists", answer)

    def manage_existing_get_size(self, volume: Volume, reference: Mapping[str, str]) -> int:
        method = "manage_existing_get_size"
        answer = self._ask(method, lambda: self.driver.manage_existing_get_size(volume, reference))
        return self._answers.size(method, answer)

    def manage_existing(self, volume: Volume, reference: Mapping[str, str]) -> VolumeUpdate:
        answer = self._ask("manage_existing", lambda: self.driver.manage_existing(volume, reference))
        return self._answers.update("manage_existing", answer)

    def unmanage(self, volume: Volume) -> None:
        self._answers.nothing("unmanage", self._ask("unmanage", lambda: self.driver.unmanage(volume)))

    def create_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        answer = self._ask("create_snapshot", lambda: self.driver.create_snapshot(volume, snapshot_id))
        self._answers.nothing("create_snapshot", answer)

    def delete_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        answer = self._ask("delete_snapshot", lambda: self.driver.delete_snapshot(volume, snapshot_id))
        self._answers.nothing("delete_snapshot", answer)

    def retype(self, context: RequestContext, volume: Volume, new_type: str) -> tuple[bool, VolumeUpdate]:
        answer = self._ask("retype", lambda: self.driver.retype(context, volume, new_type))
        return self._answers.moved("retype", answer)

    # --- reaching a volume --------------------------------------------------------------------

    def initialize_connection(
        self, volume: Volume, *, names: Mapping[str, Any] | None = None, only_look: bool = False
    ) -> ConnectionInfo:
        """Make the volume reachable. A connection that comes too late is ended, unless somebody else has it by then.

        :param names: what :meth:`host_names` said, for a caller who keeps it for :meth:`terminate_connection`.
        """
        method = "initialize_connection"
        connector = self._connector(names, only_look=only_look)

        def undo() -> None:
            self._repeat("terminate_connection", lambda: self.driver.terminate_connection(volume, connector))

        connection = Connection(host=volume.host, name=volume.provider_id or volume.backend_id)
        with self._claims.making(connection, wait_seconds=self.call_seconds(method)) as claim:
            info = self._ask(
                method,
                lambda: self.driver.initialize_connection(volume, connector),
                when_late=lambda _: self._claims.take_back(claim, undo),
            )
            return self._answers.connection(method, info)

    def terminate_connection(
        self, volume: Volume, *, names: Mapping[str, Any] | None = None, only_look: bool = False
    ) -> None:
        """Take the connection back. Succeeds when there is none.

        :param names: under which the volume was made reachable, since this host may have others by now.
        """
        method = "terminate_connection"
        connector = self._connector(names, only_look=only_look)
        answer = self._ask(method, lambda: self.driver.terminate_connection(volume, connector))
        self._answers.nothing(method, answer)

    def remove_export(self, volume: Volume) -> None:
        """Take back whatever shows *volume* to other hosts. :raises volmig.errors.VolumeInUse: see the contract."""
        method = "remove_export"
        answer = self._ask(method, lambda: self.driver.remove_export(RequestContext(), volume))
        self._answers.nothing(method, answer)

    def list_exports(self) -> tuple[str, ...]:
        """Return the ``backend_id`` of each volume that is shown to other hosts."""
        return self._answers.ids("list_exports", self._ask("list_exports", self.driver.list_exports))

    def open_volume(self, volume: Volume, mode: str) -> BinaryIO:
        method = "open_volume"
        handle = self._ask(method, lambda: self.driver.open_volume(volume, mode), when_late=lambda late: late.close())
        return self._answers.handle(method, handle)

    # --- migration ----------------------------------------------------------------------------

    def migrate_volume(
        self,
        context: RequestContext,
        volume: Volume,
        host: MigrationHost,
        *,
        watch: AbstractContextManager[None] | None = None,
    ) -> tuple[bool, VolumeUpdate]:
        """As the driver's.

        :param watch: entered around the driver's method, in the thread of the call, and so left when that ends, also
            long after it was given up.
        """

        def move() -> tuple[bool, VolumeUpdate | None]:
            with watch or nullcontext():
                return self.driver.migrate_volume(context, volume, host)

        return self._answers.moved("migrate_volume", self._ask("migrate_volume", move))

    def recover_migration(
        self, context: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate]:
        """As the driver's, which may raise NotImplementedError."""
        answer = self._ask("recover_migration", lambda: self.driver.recover_migration(context, volume, host))
        return self._answers.moved("recover_migration", answer)

    def update_migrated_volume(
        self, context: RequestContext, volume: Volume, new_volume: Volume, original_status: str
    ) -> VolumeUpdate:
        """As the driver's; where it offers none, the answer keeps the copy under its own id."""
        method = "update_migrated_volume"
        try:
            answer = self._ask(
                method,
                lambda: self.driver.update_migrated_volume(context, volume, new_volume, original_status),
            )
        except NotImplementedError:
            return {"_name_id": new_volume.backend_id}
        return self._answers.update(method, answer, required=True)

    # --- calls --------------------------------------------------------------------------------

    def _ask(self, method: str, function: Callable[[], T], *, when_late: Callable[[T], object] | None = None) -> T:
        """Call the driver, after setting it up if need be: the call may be the first one after a restart."""
        self.require_set_up(self.call_seconds(method))
        return self._call(method, function, when_late=when_late)

    def _call(self, method: str, function: Callable[[], T], *, when_late: Callable[[T], object] | None = None) -> T:
        def attempt() -> T:
            return call_with_timeout(
                function,
                backend=self.name,
                method=method,
                timeout_seconds=self.call_seconds(method),
                when_late=when_late,
                hanging=self._hanging,
            )

        try:
            return self._repeat(method, attempt)
        except NotImplementedError as error:
            if method in _MAY_BE_LEFT_OUT:
                raise
            raise errors.DriverFailed(backend=self.name, method=method, reason="it is not implemented") from error

    def _repeat(self, method: str, attempt: Callable[[], T]) -> T:
        repetition = POLICIES[method].repetition
        return self._retries.run(attempt, backend=self.name, method=method, repetition=repetition)


def placed(volume: Volume, update: Mapping[str, Any]) -> Volume:
    """Return a volume at the place that a driver's update gives it, as the driver is told of it from then on."""
    return replace(
        volume,
        name_id=update.get("_name_id", volume.name_id),
        provider_location=update.get("provider_location", volume.provider_location),
        provider_id=update.get("provider_id", volume.provider_id),
    )
