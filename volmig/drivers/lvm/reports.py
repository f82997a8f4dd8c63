"""What LVM tells of its volume groups, logical and physical volumes, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from volmig.drivers.lvm.commands import Commands

_LV_FIELDS: Final = (
    *("lv_name", "lv_uuid", "lv_size", "lv_attr", "lv_layout", "lv_role", "pool_lv", "origin", "lv_tags"),
    *("lv_device_open", "lv_active", "data_percent", "metadata_percent", "devices"),
)
_VG_FIELDS: Final = (
    *("vg_name", "vg_uuid", "vg_size", "vg_free", "vg_extent_size", "vg_missing_pv_count"),
    *("vg_exported", "vg_systemid", "vg_permissions"),
)
_PV_FIELDS: Final = ("pv_name", "pv_uuid", "pv_size", "pv_free", "pv_tags", "pv_allocatable", "pv_missing", "vg_name")
_PVSEG_FIELDS: Final = ("pv_uuid", "pv_name", "vg_name", "pvseg_start", "pvseg_size", "lv_name")
_THICK_LAYOUTS: Final = frozenset({"linear", "striped", "mirror", "raid", "cache", "writecache", "integrity"})


class LvKind(enum.Enum):
    """What a logical volume is, as far as a driver of volumes has to know."""

    THICK = "thick"
    """All of it is allocated: linear, striped, mirrored, raid or cached. It may have snapshots."""
    THIN = "thin"
    """A volume of a thin pool that is no snapshot of another."""
    THIN_POOL = "thin-pool"
    SNAPSHOT = "snapshot"
    """A snapshot whose origin is still there, thick or thin."""
    OTHER = "other"
    """A part of another one, a cache pool, or something that this release does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogicalVolume:
    """One logical volume."""

    name: str
    uuid: str
    size_bytes: int
    kind: LvKind
    pool: str = ""
    """The thin pool that it is in; empty when it is in none."""
    origin: str = ""
    """What it is a snapshot of; empty when it is none."""
    is_open: bool = False
    is_active: bool = False
    tags: tuple[str, ...] = ()
    attr: str = ""
    """LVM's ten letters, see lvs(8)."""
    layout: tuple[str, ...] = ()
    """How it is made, such as ``linear`` or ``raid``, ``raid1``."""
    has_snapshots: bool = False
    data_percent: float = 0.0
    """How full a thin pool's data, or a thick snapshot, is; what of a thin volume is allocated."""
    metadata_percent: float = 0.0
    """How full a thin pool's metadata is."""
    devices: tuple[str, ...] = ()
    """The physical volumes (or internal volumes) that it lies on, each once."""

    @property
    def zeroes(self) -> bool:
        """Whether a thin pool hands out zeroed room, and so whether its new volumes read as zeroes."""
        return self.attr[7:8] == "z"

    @property
    def is_suspended(self) -> bool:
        """Whether what is written to it waits."""
        return self.attr[4:5] in {"s", "S"}

    @property
    def health(self) -> str:
        """The letter that tells of damage: ``p`` partial, ``F`` failed, ``D`` out of data space, ``M`` metadata is
        read only, ``X`` unknown; empty when all is well."""
        return self.attr[8:9].strip("-")


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeGroup:
    """One volume group."""

    name: str
    uuid: str
    size_bytes: int
    free_bytes: int
    extent_bytes: int
    missing_pvs: int
    """How many of its physical volumes are not there."""
    is_exported: bool = False
    system_id: str = ""
    """The host that owns it; empty when any may use it."""
    is_writable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicalVolume:
    """One physical volume of a volume group."""

    name: str
    """Its device's path, or LVM's word for an unknown device when it is missing."""
    uuid: str
    size_bytes: int
    free_bytes: int
    tags: tuple[str, ...] = ()
    is_allocatable: bool = True
    is_missing: bool = False


def logical_volumes(commands: Commands, vg: str, *, names: Sequence[str] = ()) -> list[LogicalVolume]:
    """Return the logical volumes of a volume group that are visible, in the order of their names.

    :param names: only those of these names, which must be checked names; those that are not there are left out.
    :raises volmig.drivers.lvm.commands.CommandFailed: when the volume group is not there or cannot be read.
    """
    return group_and_volumes(commands, vg, names=names)[1]


def group_and_volumes(
    commands: Commands, vg: str, *, names: Sequence[str] = ()
) -> tuple[VolumeGroup | None, list[LogicalVolume]]:
    """Return a volume group and the logical volumes in it at one instant, as :func:`logical_volumes`.

    The group is None when there are no such volumes: nothing has told of it then.
    """
    wanted = ("-S", " || ".join(f'lv_name="{name}"' for name in names)) if names else ()
    group: VolumeGroup | None = None
    found: dict[str, LogicalVolume] = {}
    for row in commands.report("lvs", _LV_FIELDS + _VG_FIELDS, *wanted, vg):
        group = _volume_group(row)
        part = _logical_volume(row)
        known = found.get(part.uuid)
        if known is not None:  # a further segment of it
            part = replace(known, devices=tuple(dict.fromkeys(known.devices + part.devices)))
        found[part.uuid] = part
    return group, sorted(found.values(), key=lambda lv: lv.name)


def _logical_volume(row: Mapping[str, str]) -> LogicalVolume:
    layout, role = _words(row["lv_layout"]), _words(row["lv_role"])
    return LogicalVolume(
        name=row["lv_name"].strip("[]"),
        uuid=row["lv_uuid"],
        size_bytes=_number(row["lv_size"]),
        kind=_kind(layout, role),
        pool=row["pool_lv"].strip("[]"),
        origin=row["origin"].strip("[]"),
        is_open=row["lv_device_open"] in {"open", "1"},
        is_active=row["lv_active"].startswith("active"),
        tags=_words(row["lv_tags"]),
        attr=row["lv_attr"],
        layout=layout,
        has_snapshots="origin" in role,
        data_percent=_share(row["data_percent"]),
        metadata_percent=_share(row["metadata_percent"]),
        devices=tuple(dict.fromkeys(device.rpartition("(")[0] or device for device in _words(row["devices"]))),
    )


def _kind(layout: Sequence[str], role: Sequence[str]) -> LvKind:
    if "thin" in layout and "pool" in layout:  # whose role is private, although it is an object of its own
        return LvKind.THIN_POOL
    if "pool" in layout or "private" in role:
        return LvKind.OTHER
    if "snapshot" in role:
        return LvKind.SNAPSHOT
    if "thin" in layout:
        return LvKind.THIN
    return LvKind.THICK if layout and layout[0] in _THICK_LAYOUTS else LvKind.OTHER


def volume_groups(commands: Commands, vg: str) -> list[VolumeGroup]:
    """Return all volume groups of a name, which are several when disks were cloned; also those of other hosts."""
    rows = commands.report("vgs", _VG_FIELDS, "--foreign", "-S", f'vg_name="{vg}"')
    return [_volume_group(row) for row in rows if row["vg_name"] == vg]


def _volume_group(row: Mapping[str, str]) -> VolumeGroup:
    return VolumeGroup(
        name=row["vg_name"],
        uuid=row["vg_uuid"],
        size_bytes=_number(row["vg_size"]),
        free_bytes=_number(row["vg_free"]),
        extent_bytes=_number(row["vg_extent_size"]),
        missing_pvs=_number(row["vg_missing_pv_count"]),
        is_exported=row["vg_exported"] in {"exported", "1"},
        system_id=row["vg_systemid"],
        is_writable=row["vg_permissions"] != "read-only",
    )


def volume_group(commands: Commands, vg: str) -> VolumeGroup | None:
    """Return the volume group of a name, or None; when there are several, the first that LVM names."""
    found = volume_groups(commands, vg)
    return found[0] if found else None


def physical_volumes(commands: Commands, vg: str) -> list[PhysicalVolume]:
    """Return the physical volumes of a volume group."""
    rows = commands.report("pvs", _PV_FIELDS, "--foreign", "-S", f'vg_name="{vg}"')
    return [
        PhysicalVolume(
            name=row["pv_name"],
            uuid=row["pv_uuid"],
            size_bytes=_number(row["pv_size"]),
            free_bytes=_number(row["pv_free"]),
            tags=_words(row["pv_tags"]),
            is_allocatable=row["pv_allocatable"] in {"allocatable", "1"},
            is_missing=row["pv_missing"] in {"missing", "1"},
        )
        for row in rows
        if row["vg_name"] == vg
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicalSegment:
    """Some extents of a physical volume that are free, or are all one logical volume's."""

    pv_uuid: str
    pv: str
    """The physical volume's device."""
    first: int
    count: int
    lv: str
    """The logical volume, which may be an internal one; empty when they are free."""


def physical_segments(commands: Commands, vg: str) -> list[PhysicalSegment]:
    """Return what every extent of a volume group's physical volumes is used for."""
    rows = commands.report("pvs", _PVSEG_FIELDS, "--segments", "--foreign", "-S", f'vg_name="{vg}"')
    return [
        PhysicalSegment(
            pv_uuid=row["pv_uuid"],
            pv=row["pv_name"],
            first=_number(row["pvseg_start"]),
            count=_number(row["pvseg_size"]),
            lv=row["lv_name"].strip("[]"),
        )
        for row in rows
        if row["vg_name"] == vg
    ]


def local_system_id(commands: Commands) -> str:
    """Return the system id by which LVM knows this host; empty when it has none."""
    _, _, identity = commands.run("lvm", "systemid").partition(":")
    return identity.strip()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def _number(text: str) -> int:
    return int(float(text)) if "." in text else int(text or 0)


def _share(text: str) -> float:
    return float(text) if text else 0.0
