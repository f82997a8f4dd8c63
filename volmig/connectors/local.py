"""The connector for volumes that are a path on this host already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from volmig.connectors.base import Connector


class LocalConnector(Connector):
    """``data`` holds ``device_path``: a block device or a regular file."""

    leaves_connection: ClassVar[bool] = False

    def connect(self, data: Mapping[str, Any]) -> str:
        return str(data["device_path"])

    def disconnect(self, data: Mapping[str, Any]) -> None:
        pass
