"""The file driver with its volumes shown by NBD over TLS only, even to this host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oslo_config import cfg

from volmig.drivers.base import Capability, ConnectionInfo, ConnectorProperties
from volmig.drivers.file import FileDriver
from volmig.drivers.targets.nbd import NbdExporter
from volmig.model import Volume


class NbdFileDriver(FileDriver):
    """Its files are regular files, so that a test can look at them."""

    capabilities = FileDriver.capabilities - {Capability.FILE_MODE, Capability.NATIVE_MIGRATION}

    def __init__(self, *, host: str, backend: str, options: Mapping[str, Any]) -> None:
        super().__init__(host=host, backend=backend, options=options)
        self.exporter = NbdExporter(
            {
                "target_protocol": "nbd",
                "target_ip_address": "127.0.0.1",
                "target_port": options["nbd_port"],
                "target_tls_directory": options["nbd_tls"],
                "target_run_directory": options["nbd_run"],
            },
            backend=backend,
            host=host,
        )

    @staticmethod
    def get_driver_options() -> Sequence[cfg.Opt]:
        own = (cfg.StrOpt("nbd_tls"), cfg.StrOpt("nbd_run"), cfg.PortOpt("nbd_port", default=0))
        return (*FileDriver.get_driver_options(), *own)

    def initialize_connection(self, volume: Volume, connector: ConnectorProperties) -> ConnectionInfo:
        device = str(Path(self.options["file_directory"]) / volume.backend_name)
        if volume.backend_id not in self.exporter.exports():
            # Once only: it refuses files that a QEMU has locked, as the server does.
            super().initialize_connection(volume, connector)
        if connector.get("only_look"):
            return {"driver_volume_type": "local", "data": {"device_path": device, "format": "raw"}}
        return self.exporter.connection(volume.backend_id, device, connector)

    def terminate_connection(self, volume: Volume, connector: ConnectorProperties) -> None:
        if not connector.get("only_look"):
            self.exporter.terminate(volume.backend_id, connector)
        super().terminate_connection(volume, connector)
