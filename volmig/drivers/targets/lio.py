"""iSCSI targets of the kernel (LIO), through its configuration file system.

A volume has a target of its own with one logical unit. Hosts are named one by one, each with its own CHAP secret; a
host that is not named can neither log in nor discover the target. The kernel opens the device exclusively: while it is
exported, nobody on this host can mount it or open it exclusively, and what somebody has so cannot be exported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from pathlib import Path

from volmig.drivers.targets.configfs import ConfigFs
from volmig.drivers.targets.requests import Export, Refused

MODULES = ("target_core_mod", "target_core_iblock", "iscsi_target_mod")
SUBTREE = "target"

_ADAPTER = "core/iblock_20261"
"""One for all devices; any free number does, and a high one keeps out of the way of targetcli."""
_DEVICE = re.compile(r"Major: (\d+) Minor: (\d+)")
_LINK = "volmig"
_NO_SESSION = "No active iSCSI Session"
"""How the kernel begins what it tells of a host without one; of any other it tells what its session is."""


class Lio:
    """The kernel's iSCSI targets."""

    def __init__(self, tree: ConfigFs) -> None:
        self._tree = tree

    def export(self, request: Export) -> None:
        """Show a device to one host, beside those that it is shown to already.

        The target is enabled last, so that it is never reachable without its rules. What a call that fails has made is
        taken back.

        :raises Refused: ``busy``, when somebody on this host has the device open exclusively.
        """
        if self._device_of(_store(request.name)) not in (None, Path(request.device).stat().st_rdev):
            # It holds something else, which had the name before.
            self.remove(request.name)
        access = f"{_group(request.name)}/acls/{request.host_name}"
        # One without is what a program that was killed has left, and gives no access.
        had_access = self._tree.exists(f"{access}/lun_0/{_LINK}")
        try:
            self._show(request)
        except (OSError, Refused):
            # What is told is why it failed, not what else fails thereby.
            with contextlib.suppress(OSError):
                self._take_back(request, had_access=had_access)
            raise

    def _show(self, request: Export) -> None:
        tree, group, store = self._tree, _group(request.name), _store(request.name)
        self._make_store(store, request)
        tree.make(group)
        for attribute, value in (("authentication", "1"), ("generate_node_acls", "0"), ("demo_mode_discovery", "0")):
            tree.put(f"{group}/attrib/{attribute}", value)
        tree.make(f"{group}/lun/lun_0")
        tree.link(f"{group}/lun/lun_0/{_LINK}", store)
        access = f"{group}/acls/{request.host_name}"
        tree.make(access)
        tree.put(f"{access}/auth/userid", request.user)
        tree.put(f"{access}/auth/password", request.password)
        tree.make(f"{access}/lun_0")
        tree.link(f"{access}/lun_0/{_LINK}", f"{group}/lun/lun_0")
        self._make_portal(group, request)
        tree.put(f"{group}/enable", "1")

    def _take_back(self, request: Export, *, had_access: bool) -> None:
        """Undo a call that has failed, but nothing that a host could use before it."""
        group = _group(request.name)
        others = [name for name in self._tree.objects(f"{group}/acls") if name != request.host_name]
        # What is not enabled was never whole, so that nobody uses it, whoever it names.
        if not self._is_enabled(group) or not (others or had_access):
            self.remove(request.name)
        elif not had_access:
            self._remove_access(group, request.host_name)

    def revoke(self, name: str, host_name: str) -> None:
        """Take a host's access back, and end its sessions; the target goes with its last host."""
        group = _group(name)
        self._remove_access(group, host_name)
        if not self._tree.objects(f"{group}/acls"):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a target with all that belongs to it, however much of it there is."""
        tree, group = self._tree, _group(name)
        if self._is_enabled(group):
            tree.write(f"{group}/enable", "0")
        for host_name in tree.objects(f"{group}/acls"):
            self._remove_access(group, host_name)
        for unit in tree.objects(f"{group}/lun"):
            self._remove_linked(f"{group}/lun/{unit}")
        for portal in tree.objects(f"{group}/np"):
            tree.remove(f"{group}/np/{portal}")
        tree.remove(group)
        tree.remove(f"iscsi/{name}")
        tree.remove(_store(name))
        if tree.exists(_ADAPTER) and not tree.objects(_ADAPTER):
            # Others may be making something in it at this moment, by other programs.
            with contextlib.suppress(OSError):
                tree.remove(_ADAPTER)

    def users(self, name: str) -> list[str]:
        """Return the names of the hosts that have a session with a target."""
        access = f"{_group(name)}/acls"
        hosts = self._tree.objects(access)
        return [host for host in hosts if not self._tree.read(f"{access}/{host}/info").startswith(_NO_SESSION)]

    def names(self) -> list[str]:
        """Return the names of all targets, and of devices that a target was to be made for."""
        targets = [name for name in self._tree.objects("iscsi") if name.startswith(("iqn.", "eui.", "naa."))]
        return sorted({*targets, *self._tree.objects(_ADAPTER)})

    def _is_enabled(self, group: str) -> bool:
        return self._tree.exists(group) and self._tree.read(f"{group}/enable") == "1"

    def _device_of(self, store: str) -> int | None:
        """Return the number of the device that a backstore holds; None when it holds none."""
        if not self._tree.exists(store):
            return None
        found = _DEVICE.search(self._tree.read(f"{store}/info"))
        number = os.makedev(int(found[1]), int(found[2])) if found else 0
        # One that is not set up yet says 0:0, which is no device's number.
        return number or None

    def _make_store(self, store: str, request: Export) -> None:
        tree = self._tree
        tree.make(store)
        if self._device_of(store) is None:
            tree.write(f"{store}/wwn/vpd_unit_serial", request.serial)
            tree.write(f"{store}/control", f"udev_path={request.device}")
            tree.write(f"{store}/udev_path", request.device)
            try:
                tree.write(f"{store}/enable", "1")
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise Refused("busy", f"{request.device} is held by something else on this host") from error
                raise
        for attribute in ("emulate_tpu", "emulate_tpws"):
            # So that parts can be given back to a thin pool. Refused where the device cannot. Never before the store is
            # enabled: Linux 6.1 follows a null pointer then.
            with contextlib.suppress(OSError):
                tree.put(f"{store}/attrib/{attribute}", "1")

    def _make_portal(self, group: str, request: Export) -> None:
        address = f"[{request.address}]" if ":" in request.address else request.address
        portal = f"{address}:{request.port}"
        # First, since it may fail: whoever is connected keeps the old one then.
        if not self._tree.exists(f"{group}/np/{portal}"):
            _require_own(request.address)
            self._tree.make(f"{group}/np/{portal}")
        for other in self._tree.objects(f"{group}/np"):
            if other != portal:
                self._tree.remove(f"{group}/np/{other}")

    def _remove_access(self, group: str, host_name: str) -> None:
        access = f"{group}/acls/{host_name}"
        for unit in self._tree.objects(access):
            if unit.startswith("lun_"):
                self._remove_linked(f"{access}/{unit}")
        self._tree.remove(access)

    def _remove_linked(self, directory: str) -> None:
        for link in self._tree.links(directory):
            self._tree.unlink(f"{directory}/{link}")
        self._tree.remove(directory)


def _require_own(address: str) -> None:
    """Refuse an address that is not this host's. The kernel listens at any; nobody would ever reach it there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            # Whatever else is wrong with it is for the kernel to say.
            if error.errno == errno.EADDRNOTAVAIL:
                raise Refused("failed", f"{address} is no address of this host") from error


def _group(name: str) -> str:
    return f"iscsi/{name}/tpgt_1"


def _store(name: str) -> str:
    return f"{_ADAPTER}/{name}"
