"""What is asked of the program that changes the kernel's targets, and how a refusal is told.

It runs as root and reads the request from a process that may not, so that nothing in it is trusted: names are checked
before they become paths.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"(iqn|nqn|eui|naa)\.[a-z0-9][a-z0-9.:-]{0,218}")
"""An iSCSI or NVMe qualified name, in the characters that both allow and that no path gives a meaning to."""
_HOST_NAME = re.compile(r"(iqn|nqn|eui|naa)\.[A-Za-z0-9][A-Za-z0-9.:_-]{0,218}")
_SERIAL = re.compile(r"[0-9a-f]{32}")
_ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F:]{2,39}")
_WORD = re.compile(r"[A-Za-z0-9.:_-]{1,250}")


class Refused(Exception):
    """A request that cannot be carried out.

    :ivar kind: ``busy`` when it may succeed later and has changed nothing, ``in-use`` when hosts have sessions, which
        are the reason then, ``unsupported`` when the kernel cannot do it, ``failed`` for all else.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A device that is to be shown to one host."""

    name: str
    """Qualified name of the target; one for each volume."""
    device: str
    """The block device, under the name that the kernel gives it, which it keeps while it is held."""
    serial: str
    """32 hexadecimal digits, by which hosts know the device."""
    host_name: str
    """Qualified name of the host that may use it."""
    address: str
    port: int
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Export({self.name}, {self.device}, for {self.host_name})"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Export:
        """Return the request. :raises Refused: when something in it is not what it must be."""
        port = values.get("port")
        if not isinstance(port, int) or not 0 < port < 65536:
            raise Refused("failed", f"{port!r} is no port")
        user, password = str(values.get("user", "")), str(values.get("password", ""))
        if user or password:
            _checked(user, _WORD, "user name")
            if not _WORD.fullmatch(password):
                # Never told.
                raise Refused("failed", "the password has characters that are not allowed")
        return cls(
            name=checked_name(values.get("name")),
            device=_checked_device(str(values.get("device", ""))),
            serial=_checked(values.get("serial"), _SERIAL, "serial number"),
            host_name=checked_host_name(values.get("host_name")),
            address=_checked(values.get("address"), _ADDRESS, "address"),
            port=port,
            user=user,
            password=password,
        )


def checked_name(value: object) -> str:
    """Return the qualified name of a target. :raises Refused: when it is none."""
    return _checked(value, _NAME, "qualified name of a target")


def checked_host_name(value: object) -> str:
    """Return the qualified name of a host. :raises Refused: when it is none."""
    return _checked(value, _HOST_NAME, "qualified name of a host")


def _checked(value: object, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Refused("failed", f"{value!r} is no {what}")
    return value


def _checked_device(path: str) -> str:
    real = Path(path).resolve()
    if not path.startswith("/dev/") or Path("/dev") not in real.parents:
        raise Refused("failed", f"{path!r} is no device")
    try:
        found = real.stat()
    except OSError as error:
        raise Refused("failed", f"{path}: {error.strerror}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise Refused("failed", f"{path} is no block device")
    return str(real)
