"""A connector with sessions, as iSCSI has them: they outlive the process, and hang when their target goes first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volmig.connectors import Connector
from volmig.drivers.base import ConnectionInfo, ConnectorProperties, VolumeDriver
from volmig.model import Volume

SECRET = "chap-4f1c9a77"  # noqa: S105


class Sessions:
    """What there is on this host, and what was done, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> list[str]:
        return sorted(path.name for path in self.directory.glob("session-*"))

    def events(self) -> list[str]:
        log = self.directory / "events"
        return log.read_text().split() if log.exists() else []

    def tell(self, event: str) -> None:
        with (self.directory / "events").open("a") as log:
            log.write(f"{event}\n")


class SessionConnector(Connector):
    """Logs in with the secret, and out without."""

    def connect(self, data: Mapping[str, Any]) -> str:
        sessions = Sessions(Path(data["sessions"]))
        if data["auth_password"] != SECRET:
            raise PermissionError("the login was refused")
        link = sessions.directory / f"session-{data['target']}"
        if not link.is_symlink():
            link.symlink_to(data["path"])
        if (sessions.directory / "fail").exists():
            raise OSError("no device has appeared")
        sessions.tell(f"connect:{data['target']}")
        return str(link)

    def disconnect(self, data: Mapping[str, Any]) -> None:
        sessions = Sessions(Path(data["sessions"]))
        if SECRET in json.dumps(data):
            raise AssertionError("the secret is not needed to disconnect")
        if (sessions.directory / "refuse").exists():
            raise OSError("the session does not end")
        (sessions.directory / f"session-{data['target']}").unlink(missing_ok=True)
        sessions.tell(f"disconnect:{data['target']}")


NAME = f"{SessionConnector.__module__}:{SessionConnector.__qualname__}"


def export_through_sessions(driver: VolumeDriver, sessions: Sessions) -> None:
    """Let a driver's volumes be reached by sessions instead of directly."""
    locally = driver.initialize_connection

    def initialize(volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        path = locally(volume, connector)["data"]["device_path"]
        data = {"sessions": str(sessions.directory), "target": _target(volume), "path": path, "auth_password": SECRET}
        return {"driver_volume_type": NAME, "data": data}

    def terminate(volume: Volume, connector: ConnectorProperties) -> None:
        if f"session-{_target(volume)}" in sessions.open():
            raise OSError("the session hangs, since its target is gone")
        sessions.tell(f"terminate:{_target(volume)}")

    driver.initialize_connection = initialize  # type: ignore[method-assign]
    driver.terminate_connection = terminate  # type: ignore[method-assign]


def _target(volume: Volume) -> str:
    return volume.backend_id[:8]
