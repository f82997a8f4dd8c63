"""Volumes over NVMe/TCP, by the kernel's own target (nvmet)."""

from __future__ import annotations

import uuid

from volmig.drivers.base import ConnectionInfo, ConnectorProperties
from volmig.drivers.targets.kernel import KernelExporter


class NvmetExporter(KernelExporter):
    """Each volume is a subsystem with one namespace. Hosts are known by their name alone, which anybody on the network
    can give as their own: for trusted networks only.
    """

    protocol = "nvmet_tcp"
    default_prefix = "nqn.2026-11.org.volmig:"
    default_port = 4420
    host_key = "nqn"
    host_file = "/etc/nvme/hostnqn"

    def connection(self, volume_id: str, device: str, connector: ConnectorProperties) -> ConnectionInfo:
        name = self.export(volume_id, device, connector)
        return {
            "driver_volume_type": "nvmeof",
            "data": {
                "target_nqn": name,
                "vol_uuid": str(uuid.UUID(self.serial(volume_id))),
                "portals": [[self.ip_address, str(self.port), "tcp"]],
                "host_nqn": self.host_name(connector),
                "volume_id": volume_id,
                "volmig_serial": self.serial(volume_id),
                "discard": True,
            },
        }
