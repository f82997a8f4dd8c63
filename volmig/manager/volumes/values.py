"""What a request may say of a volume, and how a driver's answer becomes a part of its record."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from volmig import errors
from volmig.drivers.base import VolumeUpdate
from volmig.model import PoolAddress, Volume

LONGEST_NAME = 255


def new_volume(
    *,
    host: str,
    size_bytes: int,
    name: str,
    volume_type: str | None,
    project_id: str | None,
    metadata: Mapping[str, str] | None,
) -> Volume:
    """Return the record of a volume to be made, with an id of its own.

    :raises volmig.errors.RequestInvalid: when the name or the metadata cannot be recorded.
    :raises volmig.errors.AddressMalformed: when *host* is neither empty nor a pool's address.
    """
    if host:
        PoolAddress.parse(host)
    check_name("the volume's name", name)
    check_metadata(metadata or {})
    return Volume(
        id=str(uuid.uuid4()),
        name=name,
        size_bytes=size_bytes,
        host=host,
        volume_type=volume_type,
        project_id=project_id,
        metadata=dict(metadata or {}),
    )


def check_size(size_bytes: object) -> None:
    """Refuse what is not a positive whole number of bytes. :raises volmig.errors.SizeInvalid:"""
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int):
        raise errors.SizeInvalid(value=size_bytes, reason="it is not a whole number of bytes")
    if size_bytes < 1:
        raise errors.SizeInvalid(value=size_bytes, reason="it is not greater than zero")
    if size_bytes >= 2**63:
        raise errors.SizeInvalid(value=size_bytes, reason="no storage is that large")


def check_name(what: str, name: object) -> None:
    """Refuse a name that cannot be shown. :raises volmig.errors.RequestInvalid:"""
    if not isinstance(name, str) or len(name) > LONGEST_NAME or not (name.isprintable() or not name):
        reason = f"it is longer than {LONGEST_NAME} characters or unprintable"
        raise errors.RequestInvalid(what=what, reason=reason)


def check_metadata(metadata: Mapping[Any, Any]) -> None:
    """Refuse metadata that is not text to text. :raises volmig.errors.RequestInvalid:"""
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or not key:
            raise errors.RequestInvalid(what="the metadata", reason=f"{key!r}: {value!r} is not text to text")


def changed_metadata(present: Mapping[str, str], added: Mapping[str, str], removed: Collection[str]) -> dict[str, str]:
    """Return metadata with some entries taken out and others put in, or put in the place of earlier ones."""
    kept = {key: value for key, value in present.items() if key not in removed}
    return {**kept, **added}


def fields_of(update: VolumeUpdate) -> dict[str, Any]:
    """Return a driver's update as fields of :class:`volmig.model.Volume`."""
    fields: dict[str, Any] = dict(update)
    if "_name_id" in fields:
        fields["name_id"] = fields.pop("_name_id")
    return fields


def merged_fields(present: Volume, update: VolumeUpdate) -> dict[str, Any]:
    """Return a driver's update as changes to a record; metadata that others have set meanwhile stays."""
    fields = fields_of(update)
    if "metadata" in fields:
        fields["metadata"] = {**present.metadata, **fields["metadata"]}
    return fields
