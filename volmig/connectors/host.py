"""What this host is called by those that show volumes to it."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

_ETC = Path("/etc")
_NAME = re.compile(r"(iqn|eui|naa|nqn)\.\S+")


def host_properties(host: str, *, etc: Path = _ETC) -> dict[str, Any]:
    """Return how drivers are told of this host, with the keys of
    :class:`volmig.drivers.base.ConnectorProperties`.

    A name that the host does not have is left out; a driver that needs it says so.

    :param host: what the host is called in pool addresses.
    :param etc: where the names are, for tests.
    """
    properties: dict[str, Any] = {"host": host, "ip": _address(), "multipath": False}
    initiator = _first(etc / "iscsi" / "initiatorname.iscsi", "InitiatorName=")
    if initiator:
        properties["initiator"] = initiator
    nqn = _first(etc / "nvme" / "hostnqn", "")
    if nqn:
        properties["nqn"] = nqn
    return properties


def _first(path: Path, prefix: str) -> str:
    """Return the name in the first line that holds one; empty when the file is missing or cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith(prefix) and _NAME.fullmatch(name := line.removeprefix(prefix).strip()):
            return name
    return ""


def _address() -> str:
    """Return the address by which this host reaches others: that of its default route; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A documentation address: connecting a datagram socket only chooses the route.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
