"""One backend as the core sees it: its driver behind timeouts and checks of what it returns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar, cast

from volmig import errors
from volmig.drivers.base import (
    Capability,
    ConnectionInfo,
    ConnectorProperties,
    MigrationHost,
    VolumeDriver,
    VolumeUpdate,
)
from volmig.manager.calls import call_with_timeout
from volmig.manager.identities import StorageIdentities
from volmig.manager.pools import BackendInfo, PoolInfo, StatsMalformed, parse_pools
from volmig.model import RequestContext, Volume
from volmig.store.rules import check_text

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_MAY_BE_LEFT_OUT = frozenset({"update_migrated_volume", "recover_migration"})
"""Methods for which the contract gives NotImplementedError a meaning."""

_UPDATE_KEYS = frozenset(VolumeUpdate.__annotations__)


class Backend:
    """A backend: calls its driver, and lets only sound answers through.

    Every method raises :class:`volmig.errors.DriverTimeout` when the driver does not answer in time,
    :class:`volmig.errors.DriverFailed` for the driver's own exceptions and
    :class:`volmig.errors.DriverContractBroken` when its answer is not what the contract says.
    """

    def __init__(
        self, driver: VolumeDriver, *, name: str, driver_name: str, identities: StorageIdentities | None = None
    ) -> None:
        self._identities = identities
        self.name = name
        self.driver = driver
        self._driver_name = driver_name
        self._timeout_seconds: float = driver.options["driver_timeout_seconds"]
        self._migrate_timeout_seconds: float = driver.options["driver_migrate_timeout_seconds"]
        self._connector: ConnectorProperties = {"host": driver.host}
        self._set_up = False
        self._setup_lock = threading.Lock()

    @property
    def host(self) -> str:
        """Name of the host that drives it."""
        return self.driver.host

    @property
    def timeout_seconds(self) -> float:
        """How long a call of the driver may take, other than ``migrate_volume``."""
        return self._timeout_seconds

    def can(self, capability: Capability) -> bool:
        """Say whether the driver claims a capability."""
        return capability in self.driver.capabilities

    # --- state --------------------------------------------------------------------------------

    def require_set_up(self) -> None:
        """Set the driver up unless that has been done; a failure is told each time until it is mended.

        :raises volmig.errors.BackendDown: saying what is wrong with the backend.
        """
        with self._setup_lock:
            if self._set_up:
                return
            recorded = self._identities.recall(f"{self.host}@{self.name}") if self._identities else None
            self.driver.storage_identity = recorded
            try:
                self._call("do_setup", lambda: self.driver.do_setup(RequestContext()))
                self._call("check_for_setup_error", self.driver.check_for_setup_error)
            except errors.BackendDown:
                raise
            except errors.VolmigError as error:
                raise errors.BackendDown(backend=self.name, reason=error.message) from error
            found: Any = self.driver.storage_identity
            if self._identities and isinstance(found, str) and found != recorded:
                self._identities.remember(f"{self.host}@{self.name}", found)
            self._set_up = True

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
        )

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
        stats: Any = self._ask("get_volume_stats", lambda: self.driver.get_volume_stats(refresh=True))
        if not isinstance(stats, Mapping):
            raise self._broken("get_volume_stats", f"it returned {type(stats).__name__}, not a mapping")
        if stats.get("down_reason"):
            raise errors.BackendDown(backend=self.name, reason=stats["down_reason"])
        return stats

    def _checked_pools(self, stats: Mapping[str, Any]) -> dict[str, PoolInfo]:
        try:
            return parse_pools(stats, self.driver.address)
        except StatsMalformed as error:
            raise self._broken("get_volume_stats", str(error)) from error

    # --- volumes ------------------------------------------------------------------------------

    def create_volume(self, volume: Volume) -> VolumeUpdate:
        """Make the object; one that appears after the call's time is removed again."""

        def undo(_update: object) -> None:
            LOG.warning("%s: volume %s was made after its time; removing it", self.name, volume.id)
            self.driver.delete_volume(volume)

        update = self._ask("create_volume", lambda: self.driver.create_volume(volume), when_late=undo)
        return self._update("create_volume", update)

    def identify_object(self, volume: Volume) -> str | None:
        identity: Any = self._ask("identify_object", lambda: self.driver.identify_object(volume))
        if identity is not None and not (isinstance(identity, str) and identity):
            raise self._broken("identify_object", f"it returned {identity!r}, neither text nor None")
        if identity is not None:
            self._check_text("identify_object", "identity", identity)
        return identity

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        """Remove the object of *volume* unless another one has taken its name; see the driver's contract."""
        answer = self._ask("delete_object", lambda: self.driver.delete_object(volume, identity))
        self._nothing("delete_object", answer)

    def check_object(self, volume: Volume) -> None:
        """Let the driver compare a volume's object with its record, where that has no effects.

        :raises volmig.errors.OperatorError: when it is not there, or has another size.
        """
        if self.can(Capability.LOCAL_PATH):
            self.initialize_connection(volume)
            self.terminate_connection(volume)
        elif self.can(Capability.FILE_MODE):
            self.open_volume(volume, "rb").close()
        elif not self.volume_exists(volume):
            location = f"{volume.backend_name} in {volume.host}"
            raise errors.VolumeObjectMissing(volume=volume.id, location=location)

    def delete_volume(self, volume: Volume) -> None:
        self._nothing("delete_volume", self._ask("delete_volume", lambda: self.driver.delete_volume(volume)))

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        answer = self._ask("extend_volume", lambda: self.driver.extend_volume(volume, new_size_bytes))
        self._nothing("extend_volume", answer)

    def volume_exists(self, volume: Volume) -> bool:
        answer: Any = self._ask("volume_exists", lambda: self.driver.volume_exists(volume))
        if not isinstance(answer, bool):
            raise self._broken("volume_exists", f"it returned {answer!r}, neither True nor False")
        return answer

    def manage_existing_get_size(self, volume: Volume, reference: Mapping[str, str]) -> int:
        method = "manage_existing_get_size"
        size: Any = self._ask(method, lambda: self.driver.manage_existing_get_size(volume, reference))
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise self._broken(method, f"it returned {size!r}, not a positive number of bytes")
        return size

    def manage_existing(self, volume: Volume, reference: Mapping[str, str]) -> VolumeUpdate:
        answer = self._ask("manage_existing", lambda: self.driver.manage_existing(volume, reference))
        return self._update("manage_existing", answer)

    def unmanage(self, volume: Volume) -> None:
        self._nothing("unmanage", self._ask("unmanage", lambda: self.driver.unmanage(volume)))

    # --- reaching a volume --------------------------------------------------------------------

    def initialize_connection(self, volume: Volume) -> ConnectionInfo:
        def undo(_info: object) -> None:
            self.driver.terminate_connection(volume, self._connector)

        method = "initialize_connection"
        info: Any = self._ask(
            method, lambda: self.driver.initialize_connection(volume, self._connector), when_late=undo
        )
        if (
            not isinstance(info, Mapping)
            or not isinstance(info.get("driver_volume_type"), str)
            or not isinstance(info.get("data"), Mapping)
        ):
            raise self._broken(method, "its answer lacks 'driver_volume_type' (text) or 'data' (a mapping)")
        return {"driver_volume_type": info["driver_volume_type"], "data": dict(info["data"])}

    def terminate_connection(self, volume: Volume) -> None:
        method = "terminate_connection"
        self._nothing(method, self._ask(method, lambda: self.driver.terminate_connection(volume, self._connector)))

    def open_volume(self, volume: Volume, mode: str) -> BinaryIO:
        handle: Any = self._ask(
            "open_volume", lambda: self.driver.open_volume(volume, mode), when_late=lambda late: late.close()
        )
        if not all(callable(getattr(handle, name, None)) for name in ("read", "seek", "tell", "close")):
            raise self._broken("open_volume", f"it returned {type(handle).__name__}, not a file-like handle")
        return handle  # type: ignore[no-any-return]

    # --- migration ----------------------------------------------------------------------------

    def migrate_volume(self, context: RequestContext, volume: Volume, host: MigrationHost) -> tuple[bool, VolumeUpdate]:
        answer = self._ask(
            "migrate_volume",
            lambda: self.driver.migrate_volume(context, volume, host),
            timeout_seconds=self._migrate_timeout_seconds,
        )
        return self._moved("migrate_volume", answer)

    def recover_migration(
        self, context: RequestContext, volume: Volume, host: MigrationHost
    ) -> tuple[bool, VolumeUpdate]:
        """As the driver's, which may raise NotImplementedError."""
        answer = self._ask("recover_migration", lambda: self.driver.recover_migration(context, volume, host))
        return self._moved("recover_migration", answer)

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
        return self._update(method, answer, required=True)

    # --- checks -------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        function: Callable[[], T],
        *,
        timeout_seconds: float | None = None,
        when_late: Callable[[T], None] | None = None,
    ) -> T:
        """Call the driver, after setting it up if need be: the call may be the first one after a restart."""
        self.require_set_up()
        return self._call(method, function, timeout_seconds=timeout_seconds, when_late=when_late)

    def _call(
        self,
        method: str,
        function: Callable[[], T],
        *,
        timeout_seconds: float | None = None,
        when_late: Callable[[T], None] | None = None,
    ) -> T:
        try:
            return call_with_timeout(
                function,
                backend=self.name,
                method=method,
                timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
                when_late=when_late,
            )
        except NotImplementedError as error:
            if method in _MAY_BE_LEFT_OUT:
                raise
            raise errors.DriverFailed(backend=self.name, method=method, reason="it is not implemented") from error

    def _moved(self, method: str, answer: Any) -> tuple[bool, VolumeUpdate]:
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], bool):
            raise self._broken(method, f"it returned {answer!r}, not (True, update) or (False, None)")
        moved, update = answer
        if not moved and update is not None:
            raise self._broken(method, "it returned an update for a volume that it did not move")
        return moved, self._update(method, update)

    def _update(self, method: str, answer: Any, *, required: bool = False) -> VolumeUpdate:
        if answer is None and not required:
            return {}
        if not isinstance(answer, Mapping):
            raise self._broken(method, f"it returned {answer!r}, not a mapping of changes")
        if unknown := sorted(str(key) for key in answer.keys() - _UPDATE_KEYS):
            raise self._broken(method, f"it asks to change {', '.join(unknown)}")
        for key, value in answer.items():
            sound = _is_metadata(value) if key == "metadata" else value is None or isinstance(value, str)
            if not sound or (key == "_name_id" and value == ""):
                raise self._broken(method, f"its value for {key} is {value!r}")
            texts = [text for item in value.items() for text in item] if key == "metadata" else [value or ""]
            for text in texts:
                self._check_text(method, key.removeprefix("_"), text)
        return cast(VolumeUpdate, dict(answer))

    def _check_text(self, method: str, name: str, text: str) -> None:
        """Refuse what could not be recorded: a rollback must not fail of it."""
        try:
            check_text(name, text)
        except errors.RequestInvalid as error:
            raise self._broken(method, error.message) from error

    def _nothing(self, method: str, answer: Any) -> None:
        if answer is not None:
            raise self._broken(method, f"it returned {answer!r}, and the contract says None")

    def _broken(self, method: str, reason: str) -> errors.DriverContractBroken:
        return errors.DriverContractBroken(driver=self._driver_name, backend=self.name, method=method, reason=reason)


def _is_metadata(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for item in value.items() for text in item)
