"""Making a volume reachable: as a device of this host, or by an export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volmig import errors
from volmig.drivers.base import ConnectionInfo, ConnectorProperties
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.devices import NotThatVolume, size_of
from volmig.drivers.lvm.group import Group
from volmig.drivers.lvm.reports import LogicalVolume

if TYPE_CHECKING:
    from volmig.drivers.targets.base import Exporter
    from volmig.model import Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Connecting:
    """Connects volumes of one group with hosts."""

    group: Group
    host: str
    """Name of this host."""
    exporter: Exporter | None
    always_export: bool
    """Whether this host reaches volumes by an export too."""

    def connect(self, volume: Volume, pool: str, connector: ConnectorProperties) -> ConnectionInfo:
        """Return how the host that *connector* describes reaches the volume."""
        path = self._ready(volume, pool)
        if not self._by_export(connector):
            return ConnectionInfo(driver_volume_type="local", data={"device_path": str(path), "format": "raw"})
        if self.exporter is None:
            raise errors.UnsupportedOperation(
                backend=self.group.backend,
                operation=f"connections from the host {connector.get('host')!r}: target_protocol is none",
                hint=f"Set target_protocol in [{self.group.backend}], or attach the volume on {self.host}.",
            )
        return self.exporter.connection(volume.backend_id, str(path), connector)

    def disconnect(self, volume: Volume, connector: ConnectorProperties) -> None:
        """Take back :meth:`connect`. Succeeds when there is no connection."""
        if self.exporter is not None and self._by_export(connector):
            self.exporter.terminate(volume.backend_id, connector)

    def remove(self, volume: Volume) -> None:
        """Remove all exports of a volume. Succeeds when there are none.

        :raises volmig.errors.VolumeInUse: when a host is seen to use one.
        """
        if self.exporter is None:
            return
        try:
            self.exporter.remove(volume.backend_id)
        except errors.VolumeInUse as exc:
            raise errors.VolumeInUse(volume=volume.id, users=exc.fields["users"]) from exc

    def exports(self) -> Sequence[str]:
        """Return the ``backend_id`` of each volume of which there is an export, whole or not."""
        return self.exporter.exports() if self.exporter is not None else ()

    def _by_export(self, connector: ConnectorProperties) -> bool:
        if connector.get("only_look"):
            return False
        if connector.get("host", self.host) != self.host:
            return True
        return self.always_export and self.exporter is not None

    def _ready(self, volume: Volume, pool: str) -> Path:
        """Have the volume's device there, with the size recorded, and return its path."""
        group = self.group
        view, lv = group.found(volume, pool)
        group.require_size(volume, lv, view.group)
        path = group.path(lv.name)
        try:
            group.activate(lv)
            with group.devices.opened(path, vg_uuid=view.group.uuid, lv_uuid=lv.uuid, flags=os.O_RDONLY) as fd:
                size = size_of(fd)
        except CommandFailed as exc:
            raise group.failed("initialize_connection", exc) from exc
        except NotThatVolume as exc:
            if is_still_there(group, lv):
                raise without_device(group, lv, exc) from exc
            raise errors.VolumeObjectMissing(volume=volume.id, location=path) from exc
        if size != lv.size_bytes:
            raise errors.VolumeSizeMismatch(volume=volume.id, recorded=volume.size_bytes, actual=size, location=path)
        return path


def is_still_there(group: Group, lv: LogicalVolume) -> bool:
    """Look again whether LVM has a volume, by its name and UUID."""
    now = group.view(lv.name).get(lv.name)
    return now is not None and now.uuid == lv.uuid


def without_device(group: Group, lv: LogicalVolume, exc: NotThatVolume) -> errors.StorageBusy:
    """Return the error of a volume that LVM has, while its device is not there or its path leads elsewhere."""
    return errors.StorageBusy(
        backend=group.backend,
        reason=f"LVM has the volume {group.vg}/{lv.name}, but its device {group.path(lv.name)} cannot be used: {exc}",
        hint=f"Try again; if it lasts, look whether udev works, and `vgmknodes {group.vg}` makes the device anew.",
    )
