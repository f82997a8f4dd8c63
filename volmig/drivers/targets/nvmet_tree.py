"""NVMe/TCP targets of the kernel (nvmet), through its configuration file system.

A volume has a subsystem of its own with one namespace. Hosts are named one by one. All volumes of an address share one
port, which goes with the last of them.

The kernel does not open the device exclusively. So it is looked at right before: what somebody on this host holds
exclusively is not exported; but nothing keeps a program on this host from opening it later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import zlib
from dataclasses import dataclass

from volmig.drivers.targets.configfs import ConfigFs
from volmig.drivers.targets.requests import Export, Refused

MODULES = ("nvmet", "nvmet_tcp")
SUBTREE = "nvmet"

_PORT_ATTRIBUTES = ("addr_trtype", "addr_adrfam", "addr_traddr", "addr_trsvcid")
_OWN_PORTS = range(26000, 36000)
"""Numbers of the ports that are made here, so that those that others have made are left alone."""


class Nvmet:
    """The kernel's NVMe targets."""

    def __init__(self, tree: ConfigFs) -> None:
        self._tree = tree

    def export(self, request: Export) -> None:
        """Show a device to one host, beside those that it is shown to already.

        The subsystem is put on its port last, so that it is never reachable without its rules. What a call that fails
        has made is taken back.

        :raises Refused: ``busy``, when somebody on this host has the device open exclusively.
        """
        subsystem = _subsystem(request.name)
        if self._device_of(subsystem) not in ("", request.device):
            # It shows something else, which had the name before.
            self.remove(request.name)
        had_access = self._tree.exists(f"{subsystem}/allowed_hosts/{request.host_name}")
        try:
            self._show(request)
        except (OSError, Refused):
            # What is told is why it failed, not what else fails thereby.
            with contextlib.suppress(OSError):
                self._take_back(request, had_access=had_access)
            raise

    def _show(self, request: Export) -> None:
        tree, subsystem = self._tree, _subsystem(request.name)
        tree.make(subsystem)
        tree.put(f"{subsystem}/attr_allow_any_host", "0")
        self._make_namespace(subsystem, request)
        tree.make(f"hosts/{request.host_name}")
        tree.link(f"{subsystem}/allowed_hosts/{request.host_name}", f"hosts/{request.host_name}")
        port = self._make_port(_Address.of(request))
        # Before it leaves the others: it fails for an address that is not this host's, and whoever is connected keeps
        # the old one then.
        tree.link(f"ports/{port}/subsystems/{request.name}", subsystem)
        # What other hosts use they keep, until the last one goes.
        others = set(self._tree.links(f"{subsystem}/allowed_hosts")) - {request.host_name}
        for other in self._ports_of(request.name):
            if other != port and not others:
                self._leave_port(other, request.name)
                self._remove_unused_ports()

    def _take_back(self, request: Export, *, had_access: bool) -> None:
        """Undo a call that has failed, but nothing that a host could use before it."""
        subsystem = _subsystem(request.name)
        others = [name for name in self._tree.links(f"{subsystem}/allowed_hosts") if name != request.host_name]
        # What is on no port was never whole, so that nobody uses it, whoever it names.
        if not self._ports_of(request.name) or not (others or had_access):
            self.remove(request.name)
        elif not had_access:
            self._tree.unlink(f"{subsystem}/allowed_hosts/{request.host_name}")
        self._forget_host(request.host_name)
        self._remove_unused_ports()

    def revoke(self, name: str, host_name: str) -> None:
        """Take a host's access back; the subsystem goes, and all connections to it end, with its last host."""
        subsystem = _subsystem(name)
        self._tree.unlink(f"{subsystem}/allowed_hosts/{host_name}")
        self._forget_host(host_name)
        if not self._tree.links(f"{subsystem}/allowed_hosts"):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a subsystem with all that belongs to it, however much of it there is."""
        tree, subsystem = self._tree, _subsystem(name)
        for port in self._ports_of(name):
            self._leave_port(port, name)
        for host_name in tree.links(f"{subsystem}/allowed_hosts"):
            tree.unlink(f"{subsystem}/allowed_hosts/{host_name}")
            self._forget_host(host_name)
        for namespace in tree.objects(f"{subsystem}/namespaces"):
            directory = f"{subsystem}/namespaces/{namespace}"
            if tree.read(f"{directory}/enable") == "1":
                tree.write(f"{directory}/enable", "0")
            tree.remove(directory)
        tree.remove(subsystem)
        self._remove_unused_ports()

    def users(self, name: str) -> list[str]:
        """Return nobody: up to Linux 6.1 the kernel does not tell who is connected to a subsystem."""
        return []

    def names(self) -> list[str]:
        """Return the names of all subsystems."""
        return self._tree.objects("subsystems")

    # --- namespace ----------------------------------------------------------------------------

    def _device_of(self, subsystem: str) -> str:
        """Return the device that a subsystem shows; empty when it shows none."""
        namespace = f"{subsystem}/namespaces/1"
        if not self._tree.exists(namespace) or self._tree.read(f"{namespace}/enable") != "1":
            return ""
        return self._tree.read(f"{namespace}/device_path")

    def _make_namespace(self, subsystem: str, request: Export) -> None:
        tree, namespace = self._tree, f"{subsystem}/namespaces/1"
        if self._device_of(subsystem):
            # It may have grown meanwhile.
            tree.write(f"{namespace}/revalidate_size", "1")
            return
        # The kernel takes 20 characters.
        tree.put(f"{subsystem}/attr_serial", request.serial[:20])
        tree.make(namespace)
        tree.write(f"{namespace}/device_path", request.device)
        tree.put(f"{namespace}/device_uuid", str(uuid.UUID(request.serial)))
        _require_free(request.device)
        tree.write(f"{namespace}/enable", "1")

    # --- hosts and ports ----------------------------------------------------------------------

    def _forget_host(self, host_name: str) -> None:
        """Remove the entry of a host that no subsystem names any more. The kernel refuses while one does.

        One that is left, after a crash right here, is a name without access to anything.
        """
        users = [name for name in self.names() if host_name in self._tree.links(f"{_subsystem(name)}/allowed_hosts")]
        if not users:
            self._tree.remove(f"hosts/{host_name}")

    def _make_port(self, address: _Address) -> str:
        """Return the port of an address, which others may have made; make one, with a number that follows from it."""
        tree, present = self._tree, self._tree.objects("ports")
        for port in present:
            if self._address_of(port) == address:
                return port
        first = zlib.crc32(repr(address).encode())
        numbers = (str(_OWN_PORTS[(first + offset) % len(_OWN_PORTS)]) for offset in range(len(_OWN_PORTS)))
        # One without users was left half-made, perhaps.
        free = next((each for each in numbers if each not in present or not self._users_of(each)), None)
        if free is None:
            raise Refused("failed", "no port number is free")
        tree.make(f"ports/{free}")
        for attribute, value in zip(_PORT_ATTRIBUTES, ("tcp", *address.values()), strict=True):
            tree.put(f"ports/{free}/{attribute}", value)
        return free

    def _address_of(self, port: str) -> _Address | None:
        """Return where a port listens; None when it is of another transport, or not complete."""
        kind, family, address, service = (self._tree.read(f"ports/{port}/{name}") for name in _PORT_ATTRIBUTES)
        return _Address(family=family, address=address, service=service) if kind == "tcp" else None

    def _users_of(self, port: str) -> list[str]:
        return self._tree.links(f"ports/{port}/subsystems")

    def _ports_of(self, name: str) -> list[str]:
        return [port for port in self._tree.objects("ports") if name in self._users_of(port)]

    def _leave_port(self, port: str, name: str) -> None:
        """Take a subsystem off a port, by which the kernel ends all connections to it."""
        self._tree.unlink(f"ports/{port}/subsystems/{name}")

    def _remove_unused_ports(self) -> None:
        for port in self._tree.objects("ports"):
            if port.isdecimal() and int(port) in _OWN_PORTS and not self._users_of(port):
                self._tree.remove(f"ports/{port}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Address:
    """Where a port listens."""

    family: str
    address: str
    service: str

    @classmethod
    def of(cls, request: Export) -> _Address:
        family = "ipv6" if ":" in request.address else "ipv4"
        return cls(family=family, address=request.address, service=str(request.port))

    def values(self) -> tuple[str, str, str]:
        return self.family, self.address, self.service


def _subsystem(name: str) -> str:
    return f"subsystems/{name}"


def _require_free(device: str) -> None:
    try:
        fd = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Refused("busy", f"{device} is held by something else on this host") from error
        raise
    os.close(fd)
