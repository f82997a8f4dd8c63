"""The options of the driver ``lvm``, and what follows from them."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oslo_config import cfg

from volmig import errors
from volmig.drivers.lvm import names


class LvmType(enum.Enum):
    """How a backend's volumes are kept."""

    THICK = "thick"
    THIN = "thin"


def storage_options() -> Sequence[cfg.Opt]:
    """Return the options of the storage; those of exports are the targets' own."""
    return (
        cfg.StrOpt("lvm_volume_group", required=True, help="Name of the volume group that holds the volumes."),
        cfg.StrOpt(
            "lvm_type",
            default="thick",
            choices=["thick", "thin"],
            help="Whether volumes are allocated as a whole, or in a thin pool as they are written.",
        ),
        cfg.ListOpt(
            "lvm_thin_pools",
            default=[],
            help="Names of the thin pools in the volume group, each a pool; without any, <volume group>-pool is the "
            "one pool. For lvm_type = thin.",
        ),
        cfg.ListOpt(
            "lvm_pv_tags",
            default=[],
            help="Tags of physical volumes, each a pool: a volume lies on physical volumes with its pool's tag only, "
            "and moves between pools while it is in use. Without any, the volume group is the one pool. For lvm_type = "
            "thick.",
        ),
        cfg.IntOpt(
            "lvm_thin_pool_size_bytes",
            default=0,
            min=0,
            help="Size of a thin pool that `volmig backend setup` makes; 0 takes nearly all that is free, shared among "
            "the pools that are missing.",
        ),
        cfg.StrOpt(
            "volume_clear",
            default="zero",
            choices=["none", "zero", "discard"],
            help="What becomes of a thick volume's data before its room is given to others: left, overwritten with "
            "zeroes, or discarded. A thin volume needs none.",
        ),
        cfg.IntOpt(
            "volume_clear_size_bytes",
            default=0,
            min=0,
            help="How much of a volume is cleared, from its beginning; 0 clears all of it.",
        ),
        cfg.StrOpt(
            "volume_clear_ionice",
            default="",
            help="Arguments for ionice(1) under which volumes are cleared, such as -c3; empty runs no ionice.",
        ),
        cfg.StrOpt(
            "lvm_root_helper",
            default="",
            help="Command that runs another one as root, such as sudo -n; empty when volmig runs as root itself. The "
            "user that volmig runs as must be allowed to open block devices (group disk) all the same.",
        ),
        cfg.IntOpt(
            "lvm_lock_retries",
            default=5,
            min=0,
            max=1000,
            help="How often a command is run again, after half a second, that could not get one of LVM's own locks.",
        ),
        cfg.IntOpt(
            "reserved_percentage",
            default=0,
            min=0,
            max=100,
            help="Part of a pool's capacity, in per cent, that new volumes leave free.",
        ),
        cfg.FloatOpt(
            "max_over_subscription_ratio",
            default=1.0,
            min=1.0,
            help="How many times its capacity a thin pool may promise to volumes; 1.0 promises no more than there is.",
        ),
        cfg.StrOpt(
            "lvm_loopback_file",
            default="",
            help="Absolute path of a file that holds the whole volume group, for tests and trials: the file, a loop "
            "device and the volume group are made when they are missing.",
        ),
        cfg.IntOpt(
            "lvm_loopback_size_bytes",
            default=10 * 1024**3,
            min=16 * 1024**2,
            help="Size of lvm_loopback_file when it is made; it is sparse.",
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A backend's options, checked."""

    vg: str
    kind: LvmType
    pools: tuple[str, ...]
    """Names of the pools: thin pools, tags of physical volumes, or the volume group."""
    tagged: bool
    """Whether pools are tags of physical volumes."""
    thin_pool_size_bytes: int
    clear: str
    clear_size_bytes: int
    clear_ionice: tuple[str, ...]
    prefix: tuple[str, ...]
    lock_retries: int
    reserved_percentage: int
    ratio: float
    loopback_file: Path | None
    loopback_size_bytes: int

    @property
    def is_thin(self) -> bool:
        """Whether volumes are thin."""
        return self.kind is LvmType.THIN

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, backend: str) -> Settings:
        """Check a backend's options. :raises volmig.errors.ConfigOptionInvalid: naming the one that is wrong."""
        reader = _Reader(options, backend)
        vg = reader.vg()
        kind = LvmType(options["lvm_type"])
        tags = reader.listed("lvm_pv_tags", names.tag_fault)
        pools = reader.listed("lvm_thin_pools", names.pool_fault)
        if kind is LvmType.THIN and tags:
            raise reader.invalid("lvm_pv_tags", "it is for lvm_type = thick; a thin volume lies where its pool lies")
        if kind is LvmType.THICK and pools:
            raise reader.invalid("lvm_thin_pools", "it is for lvm_type = thin")
        if vg in tags:
            raise reader.invalid("lvm_pv_tags", f"{vg!r} is the volume group's name, which names the pool of all of it")
        if kind is LvmType.THIN:
            pools = pools or (f"{vg}-pool",)
        return cls(
            vg=vg,
            kind=kind,
            pools=pools if kind is LvmType.THIN else tags or (vg,),
            tagged=bool(tags),
            thin_pool_size_bytes=options["lvm_thin_pool_size_bytes"],
            clear=options["volume_clear"],
            clear_size_bytes=options["volume_clear_size_bytes"],
            clear_ionice=reader.words("volume_clear_ionice"),
            prefix=reader.words("lvm_root_helper"),
            lock_retries=options["lvm_lock_retries"],
            reserved_percentage=options["reserved_percentage"],
            ratio=float(options["max_over_subscription_ratio"]),
            loopback_file=reader.path("lvm_loopback_file"),
            loopback_size_bytes=options["lvm_loopback_size_bytes"],
        )


class _Reader:
    """Reads options, and tells of one that is wrong."""

    def __init__(self, options: Mapping[str, Any], backend: str) -> None:
        self._options = options
        self._backend = backend

    def vg(self) -> str:
        name = self._options["lvm_volume_group"] or ""
        if not name:
            raise self.invalid("lvm_volume_group", "it is not set")
        if fault := names.vg_fault(name):
            raise self.invalid("lvm_volume_group", fault)
        return str(name)

    def listed(self, option: str, fault_of: Any) -> tuple[str, ...]:
        found = tuple(self._options[option] or ())
        for name in found:
            if fault := fault_of(name):
                raise self.invalid(option, f"{name[:100]!r}: {fault}")
        if len(set(found)) != len(found):
            raise self.invalid(option, "a name is there twice")
        return found

    def words(self, option: str) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(self._options[option] or ""))
        except ValueError as exc:
            raise self.invalid(option, f"it cannot be split into words: {exc}") from exc

    def path(self, option: str) -> Path | None:
        text = self._options[option]
        if not text:
            return None
        if not Path(text).is_absolute():
            raise self.invalid(option, f"{text!r} is not an absolute path")
        return Path(text)

    def invalid(self, option: str, reason: str) -> errors.ConfigOptionInvalid:
        return errors.ConfigOptionInvalid(
            option=option, group=self._backend, source="the backend's options", reason=reason
        )
