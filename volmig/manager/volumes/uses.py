"""What is only recorded of a volume: who uses it, its name and its metadata."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any, Final

from volmig import errors
from volmig.manager.volumes.gate import Gate, Request
from volmig.manager.volumes.values import changed_metadata, check_metadata, check_name
from volmig.model import Attachment, Volume, VolumeStatus
from volmig.store import Store

_ATTACH: Final = Request(
    operation="attach",
    allowed=(VolumeStatus.AVAILABLE, VolumeStatus.IN_USE),
    allows_attachments=True,
)


class Uses:
    """Records who uses a volume, what it is called, and its metadata."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    def attach(self, volume_id: str, *, instance: str, mountpoint: str) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.attach`."""
        attachment = Attachment(id=str(uuid.uuid4()), instance=instance, mountpoint=mountpoint)
        return self._gate.change(
            volume_id,
            _ATTACH,
            lambda transaction, volume: transaction.update_volume(
                volume, attachments=(*volume.attachments, attachment), status=VolumeStatus.IN_USE
            ),
        )

    def detach(self, volume_id: str, *, attachment_id: str | None) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.detach`."""
        with self._store.writing() as transaction:
            volume = transaction.get_volume(volume_id)
            ids = [attachment.id for attachment in volume.attachments]
            ended = ids[0] if attachment_id is None and len(ids) == 1 else attachment_id
            if ended not in ids:
                reason = f"volume {volume.id} has the attachments: {', '.join(ids) or 'none'}"
                raise errors.RequestInvalid(what="the attachment", reason=reason)
            left = tuple(attachment for attachment in volume.attachments if attachment.id != ended)
            status = VolumeStatus.IN_USE if left else VolumeStatus.AVAILABLE
            return transaction.update_volume(volume, attachments=left, status=status)

    def change(
        self, volume_id: str, *, name: str | None, metadata: Mapping[str, str], remove_metadata: Collection[str]
    ) -> Volume:
        """See :meth:`volmig.manager.volumes.VolumeManager.change`."""
        check_metadata(metadata)
        if name is not None:
            check_name("the volume's name", name)
        with self._store.writing() as transaction:
            volume = transaction.get_volume(volume_id)
            changes: dict[str, Any] = {"metadata": changed_metadata(volume.metadata, metadata, remove_metadata)}
            if name is not None:
                changes["name"] = name
            return transaction.update_volume(volume, **changes)
