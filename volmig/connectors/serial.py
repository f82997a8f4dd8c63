"""Making sure that an attached device is the volume, and not what was attached in its place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from volmig import errors
from volmig.connectors.base import Connector

LOG = logging.getLogger(__name__)

KEY: Final = "volmig_serial"
"""Entry of the connection data with the 32 hexadecimal digits by which the target lets hosts know the volume."""

_BLOCK = Path("/sys/class/block")
_VPD_HEADER_BYTES = 4


def require_serial(
    connector: Connector, path: str, data: Mapping[str, Any], *, target: str, protocol: str, block: Path = _BLOCK
) -> str:
    """Return the path of a device that was just attached, after checking that it says the serial number of the volume.

    Data without one, as other drivers give it, is not checked.

    :param path: of the device, which may be a link.
    :param block: where the kernel tells of devices, for tests.
    :raises volmig.errors.AttachFailed: when it says another, or none. It is detached then.
    """
    expected = data.get(KEY)
    if expected is None:
        return path
    found = serial_of(path, block=block)
    if found == _plain(str(expected)):
        return path
    try:
        connector.disconnect(connector.release_data(data))
    except errors.VolmigError as error:
        # What is told is why; whoever has begun the connection lets go of it once more.
        LOG.warning("%s", error)
    said = f"has the serial number {found}" if found else "tells no serial number"
    reason = f"{path} {said}, and the volume's is {_plain(str(expected))}"
    raise errors.AttachFailed(target=target, protocol=protocol, action="attaching", reason=reason)


def serial_of(path: str, *, block: Path = _BLOCK) -> str:
    """Return the serial number that a SCSI disk tells, or the UUID of an NVMe namespace, in small hexadecimal digits
    without dashes; empty when the device tells neither.
    """
    device = block / Path(path).resolve().name
    page = _read(device / "device/vpd_pg80")
    if len(page) > _VPD_HEADER_BYTES:
        return _plain(page[_VPD_HEADER_BYTES:].decode("ascii", errors="replace"))
    return _plain(_read(device / "uuid").decode("ascii", errors="replace"))


def _plain(text: str) -> str:
    return text.strip("\0 \n").replace("-", "").lower()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
