"""Names of logical volumes, volume groups and tags, none of which can mean anything but itself.

Every name that reaches a command line or a path comes from here, also those that a record or a request has brought.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from volmig import errors
from volmig.drivers.base import StoredObject

if TYPE_CHECKING:
    from volmig.model import Volume

# LVM's own rules, see lvm(8): letters, digits and "+_.-", no leading hyphen, at most 127 with the group's name.
_NAME: Final = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.\-]{0,126}")
_TAG: Final = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.\-]{0,99}")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+\-]{0,99}")
_DM_NAME_BYTES: Final = 127
_RESERVED_STARTS: Final = ("snapshot", "pvmove")
_RESERVED_PARTS: Final = (
    *("_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare"),
    *("_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig"),
)
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_VOLUME: Final = re.compile(rf"volume-(?P<id>{_UUID})")
_MAKING: Final = "making-"
_SNAPSHOT: Final = "snap-"
_CLEARING: Final = re.compile(r"clearing-[A-Za-z0-9]{32}")
_OWN: Final = re.compile(rf"(?:{_MAKING}|{_SNAPSHOT}){_UUID}|{_CLEARING.pattern}")


def lv_name(name: str) -> str:
    """Return *name* when it can be a logical volume's.

    :raises volmig.errors.UnsafePath: otherwise, saying why.
    """
    reason = _fault(name)
    if reason:
        raise errors.UnsafePath(path=repr(name[:200]), reason=reason)
    return name


def _fault(name: str) -> str:
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        return (
            "a logical volume's name has at most 127 characters: letters, digits, '_', '+', '.' and '-', not beginning "
            "with '-', and not '.' or '..'"
        )
    if name.startswith(_RESERVED_STARTS) or any(part in name for part in _RESERVED_PARTS):
        return "LVM keeps such names for its own use"
    return ""


def vg_fault(name: str) -> str:
    """Say why *name* cannot be a volume group's; empty when it can."""
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        return f"{name[:200]!r} is not a volume group's name: letters, digits, '_', '+', '.' and '-', no leading '-'"
    return ""


def pool_fault(name: str) -> str:
    """Say why *name* cannot be a thin pool's; empty when it can."""
    return _fault(name)


def tag_fault(tag: str) -> str:
    """Say why *tag* cannot name a pool; empty when it can."""
    if not _TAG.fullmatch(tag):
        return f"{tag[:200]!r} is not a tag: letters, digits, '_', '+', '.' and '-', no leading '-', without its '@'"
    return ""


def volume_name(backend_id: str) -> str:
    """Return ``volume-<backend_id>``. :raises volmig.errors.UnsafePath: for an id that could escape."""
    return lv_name(f"volume-{_checked(backend_id)}")


def making_name(backend_id: str) -> str:
    """Return the name that a volume has until it is whole."""
    return lv_name(f"{_MAKING}{_checked(backend_id)}")


def snapshot_name(snapshot_id: str) -> str:
    """Return ``snap-<snapshot_id>``. :raises volmig.errors.UnsafePath: for an id that could escape."""
    return lv_name(f"{_SNAPSHOT}{_checked(snapshot_id)}")


def clearing_name(lv_uuid: str) -> str:
    """Return the name of the volume through which is cleared what the volume of this UUID has left."""
    return lv_name(f"clearing-{_checked(lv_uuid.replace('-', ''))}")


def _checked(identity: str) -> str:
    if not _ID.fullmatch(identity):
        raise errors.UnsafePath(
            path=repr(identity[:200]),
            reason="an id has at most 100 characters: letters, digits, '_', '+', '-' and '.', the first a letter or "
            "digit",
        )
    return identity


def object_name(volume: Volume) -> str:
    """Return the name of the object of *volume*: ``provider_id`` when it was adopted, else by its backend id."""
    return volume_name(volume.backend_id) if volume.provider_id is None else lv_name(volume.provider_id)


def is_making(name: str) -> bool:
    """Say whether *name* is one that a volume has until it is whole."""
    return name.startswith(_MAKING) and bool(_OWN.fullmatch(name))


def is_clearing(name: str) -> bool:
    """Say whether *name* is that of a volume through which something is cleared."""
    return bool(_CLEARING.fullmatch(name))


def is_own_use(name: str) -> bool:
    """Say whether *name* is that of something that the driver keeps beside volumes."""
    return bool(_OWN.fullmatch(name))


def stored_object(name: str, size_bytes: int) -> StoredObject:
    """Tell of a logical volume by its name: which volume it would be the object of, if the name is the driver's."""
    match = _VOLUME.fullmatch(name)
    return StoredObject(name=name, size_bytes=size_bytes, backend_id=match["id"] if match else None)


def fits(vg: str, name: str) -> bool:
    """Say whether the device mapper can have a device for this volume: it doubles hyphens, and has 127 bytes."""
    return len(vg) + vg.count("-") + 1 + len(name) + name.count("-") <= _DM_NAME_BYTES
