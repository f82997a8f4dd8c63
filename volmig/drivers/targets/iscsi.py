"""Volumes over iSCSI, by the kernel's own target (LIO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volmig.drivers.base import ConnectionInfo, ConnectorProperties
from volmig.drivers.targets.kernel import KernelExporter
from volmig.drivers.targets.secrets import key_file, load_key, secret_of


class IscsiExporter(KernelExporter):
    """Each volume is a target with one logical unit; each host has a CHAP secret of its own for it."""

    protocol = "iscsi"
    default_prefix = "iqn.2026-11.org.volmig:"
    default_port = 3260
    host_key = "initiator"
    host_file = "/etc/iscsi/initiatorname.iscsi"

    def __init__(self, options: Mapping[str, Any], *, backend: str, host: str, prefix: Sequence[str] = ()) -> None:
        super().__init__(options, backend=backend, host=host, prefix=prefix)
        self._key_file = key_file(str(options["target_secret_file"]), backend)

    def connection(self, volume_id: str, device: str, connector: ConnectorProperties) -> ConnectionInfo:
        key = load_key(self._key_file, backend=self.backend)
        user = f"volmig-{self.serial(volume_id)[:12]}"
        password = secret_of(key, "chap", self.host, self.backend, volume_id, self.host_name(connector))
        name = self.export(volume_id, device, connector, user=user, password=password)
        address = f"[{self.ip_address}]" if ":" in self.ip_address else self.ip_address
        return {
            "driver_volume_type": "iscsi",
            "data": {
                "target_discovered": False,
                "target_portal": f"{address}:{self.port}",
                "target_iqn": name,
                "target_lun": 0,
                "volume_id": volume_id,
                "volmig_serial": self.serial(volume_id),
                "auth_method": "CHAP",
                "auth_username": user,
                "auth_password": password,
                "discard": True,
            },
        }
