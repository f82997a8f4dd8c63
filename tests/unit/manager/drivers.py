"""Drivers that answer what a test tells them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from volmig.drivers.base import Capability, VolumeDriver, VolumeStats
from volmig.manager.backend import Backend
from volmig.model import Volume, VolumeStatus

GIB = 1024**3


class SmallDriver(VolumeDriver):
    """Answers soundly, unless ``answers`` has something else for a method."""

    capabilities = frozenset(Capability)

    def __init__(
        self, *, host: str = "here", backend: str = "small", timeout_seconds: float = 10.0, **options: Any
    ) -> None:
        times = {"driver_timeout_seconds": timeout_seconds, "driver_migrate_timeout_seconds": timeout_seconds}
        super().__init__(host=host, backend=backend, options=times | options)
        self.answers: dict[str, Callable[[], Any]] = {}
        self.calls: list[str] = []

    def _answer(self, method: str, sound: Any = None) -> Any:
        self.calls.append(method)
        return self.answers[method]() if method in self.answers else sound

    def do_setup(self, ctxt: Any) -> None:
        return self._answer("do_setup")  # type: ignore[no-any-return]

    def check_for_setup_error(self) -> None:
        return self._answer("check_for_setup_error")  # type: ignore[no-any-return]

    def get_volume_stats(self, refresh: bool = False) -> VolumeStats:
        pool = {"pool_name": "p", "total_capacity_bytes": 10 * GIB, "free_capacity_bytes": 10 * GIB}
        sound = {
            "volume_backend_name": "small",
            "vendor_name": "tests",
            "driver_version": "1",
            "storage_protocol": "none",
            "pools": [pool, {**pool, "pool_name": "q", "location_info": "at q", "limits": {"volumes": 3}}],
        }
        return self._answer("get_volume_stats", sound)  # type: ignore[no-any-return]

    def create_volume(self, volume: Volume) -> Any:
        return self._answer("create_volume")

    def delete_volume(self, volume: Volume) -> None:
        return self._answer("delete_volume")  # type: ignore[no-any-return]

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> None:
        return self._answer("extend_volume")  # type: ignore[no-any-return]

    def volume_exists(self, volume: Volume) -> bool:
        return self._answer("volume_exists", True)  # type: ignore[no-any-return]

    def initialize_connection(self, volume: Volume, connector: Any) -> Any:
        return self._answer("initialize_connection", {"driver_volume_type": "local", "data": {"device_path": "/x"}})

    def terminate_connection(self, volume: Volume, connector: Any) -> None:
        return self._answer("terminate_connection")  # type: ignore[no-any-return]

    def migrate_volume(self, ctxt: Any, volume: Volume, host: Any) -> Any:
        return self._answer("migrate_volume", (False, None))

    def update_migrated_volume(self, ctxt: Any, volume: Volume, new_volume: Volume, original_volume_status: str) -> Any:
        return self._answer("update_migrated_volume", {"_name_id": None})

    def recover_migration(self, ctxt: Any, volume: Volume, host: Any) -> Any:
        return self._answer("recover_migration", (False, None))

    def list_objects(self, pool: str) -> Any:
        return self._answer("list_objects", [])

    def identify_object(self, volume: Volume) -> Any:
        return self._answer("identify_object")

    def create_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        return self._answer("create_snapshot")  # type: ignore[no-any-return]

    def delete_snapshot(self, volume: Volume, snapshot_id: str) -> None:
        return self._answer("delete_snapshot")  # type: ignore[no-any-return]

    def retype(self, ctxt: Any, volume: Volume, new_type: str) -> Any:
        return self._answer("retype", (False, None))

    def open_volume(self, volume: Volume, mode: str) -> Any:
        return self._answer("open_volume")

    def manage_existing_get_size(self, volume: Volume, existing_ref: Any) -> int:
        return self._answer("manage_existing_get_size", GIB)  # type: ignore[no-any-return]

    def manage_existing(self, volume: Volume, existing_ref: Any) -> Any:
        return self._answer("manage_existing")

    def unmanage(self, volume: Volume) -> None:
        return self._answer("unmanage")  # type: ignore[no-any-return]


def small_backend(timeout_seconds: float = 10.0, **options: Any) -> tuple[Backend, SmallDriver]:
    driver = SmallDriver(timeout_seconds=timeout_seconds, **options)
    return Backend(driver, name="small", driver_name="tests.small"), driver


def a_volume(**fields: Any) -> Volume:
    values = {
        "id": "4c1c1c6e-0000-4000-8000-000000000001",
        "name": "data",
        "size_bytes": GIB,
        "host": "here@small#p",
        "status": VolumeStatus.AVAILABLE,
    }
    return Volume(**{**values, **fields})
