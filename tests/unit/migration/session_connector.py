"""A connector with sessions, as iSCSI has them: they outlive the process, and hang when their target goes first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volmig import errors
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

    def access(self) -> list[str]:
        """Return who has access to what: ``TARGET=NAME``."""
        return sorted(path.name.removeprefix("access-") for path in self.directory.glob("access-*"))

    def events(self) -> list[str]:
        log = self.directory / "events"
        return log.read_text().split() if log.exists() else []

    def tell(self, event: str) -> None:
        with (self.directory / "events").open("a") as log:
            log.write(f"{event}\n")


class SessionConnector(Connector):
    """Logs in with the secret, and out without.

    With ``apart`` the device has a view of its own of the volume: what is written elsewhere later does not show in it.
    """

    def connect(self, data: Mapping[str, Any]) -> str:
        sessions = Sessions(Path(data["sessions"]))
        if data["auth_password"] != SECRET:
            raise PermissionError("the login was refused")
        link = sessions.directory / f"session-{data['target']}"
        if data.get("apart"):
            shutil.copyfile(data["path"], link)
        elif not link.is_symlink():
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


def export_through_sessions(driver: VolumeDriver, sessions: Sessions, *, apart: bool = False) -> None:
    """Let a driver's volumes be reached by sessions instead of directly, by hosts of which each is known by name."""
    locally = driver.initialize_connection

    def initialize(volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        info = locally(volume, connector)
        if connector["only_look"]:
            return info
        data = {"sessions": str(sessions.directory), "target": _target(volume), "auth_password": SECRET}
        data |= {"path": info["data"]["device_path"], "apart": apart}
        _access(volume, connector).touch()
        return {"driver_volume_type": NAME, "data": data}

    def terminate(volume: Volume, connector: ConnectorProperties) -> None:
        if connector["only_look"]:
            return
        if f"session-{_target(volume)}" in sessions.open():
            raise OSError("the session hangs, since its target is gone")
        _access(volume, connector).unlink(missing_ok=True)
        sessions.tell(f"terminate:{_target(volume)}")

    def _access(volume: Volume, connector: ConnectorProperties) -> Path:
        if "initiator" not in connector:
            raise errors.HostNotIdentified(host="here", what="initiator", protocol="sessions", file="/etc/name")
        return sessions.directory / f"access-{_target(volume)}={connector['initiator']}"

    driver.initialize_connection = initialize  # type: ignore[method-assign]
    driver.terminate_connection = terminate  # type: ignore[method-assign]


def _target(volume: Volume) -> str:
    return volume.backend_id[:8]
