"""The driver ``fake`` with exports, which hold an object as a target of the kernel holds a device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from volmig import errors
from volmig.drivers.fake import FakeDriver
from volmig.model import RequestContext, Volume

NAME = "tests.unit.exporting:ExportingDriver"


class ExportingDriver(FakeDriver):
    """Cannot delete what is exported, and does not take an export from a host that uses it.

    :ivar exported: the ``backend_id`` of what is exported, with the hosts that use it.
    :ivar may_go_on: waited for by each removal of an export.
    :ivar unlisted: why exports cannot be listed; empty when they can.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.exported: dict[str, list[str]] = {}
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.unlisted = ""

    def delete_volume(self, volume: Volume) -> None:
        if volume.backend_id in self.exported:
            raise errors.VolumeInUse(volume=volume.id, users="its device is held open")
        super().delete_volume(volume)

    def remove_export(self, ctxt: RequestContext, volume: Volume) -> None:
        self.may_go_on.wait()
        users = self.exported.get(volume.backend_id)
        if users:
            raise errors.VolumeInUse(volume=volume.id, users=", ".join(users))
        self.exported.pop(volume.backend_id, None)

    def list_exports(self) -> Sequence[str]:
        if self.unlisted:
            raise errors.ExportFailed(volume="(all)", backend=self.backend, protocol="it", reason=self.unlisted)
        return sorted(self.exported)
