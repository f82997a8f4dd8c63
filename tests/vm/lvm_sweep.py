"""Migrations of logical volumes that are killed everywhere, also in and between the programs that the driver runs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from oslo_config import cfg

from volmig import conf as configuration
from volmig.drivers.lvm.commands import Commands
from volmig.model import PoolAddress, Volume
from volmig.testing import patterns
from volmig.testing.killsweep import Bench, Scenario, migrate_plainly
from volmig.testing.killsweep.bench import MIB, content_digest
from volmig.testing.killsweep.drivers import MarkedCalls
from volmig.testing.patterns import Pattern

from .support import run

THICK, THIN, TAGGED = "vmswthick", "vmswthin", "vmswtags"
"""The volume groups that must be there: one for thick volumes, one with a thin pool, one with two tags."""
POOL = "pool"
FAST, SLOW = "fast", "slow"

VOLUME_BYTES = 3 * MIB + 512 * 1024
"""Not a whole number of extents, so that making a volume takes several steps."""

_KIB64 = 64 * 1024
_PATTERN = Pattern(
    size_bytes=VOLUME_BYTES,
    seed=17,
    data=((0, _KIB64), (MIB, MIB + _KIB64), (VOLUME_BYTES - _KIB64, VOLUME_BYTES)),
)

# What only looks leaves nothing behind.
_ONLY_LOOKING = frozenset({"lvs", "vgs", "pvs", "dmsetup", "lvm"})


class LvmBench(Bench):
    """Two pools of logical volumes, which are looked at through LVM's reports and their devices.

    :param source: pool, as ``host@backend#pool``; the backends are called as the volume groups are.
    """

    in_parallel = False
    patience_seconds = 300.0

    def __init__(self, *, source: str, destination: str) -> None:
        self.source = source
        self.destination = destination

    def configuration(self, directory: Path) -> cfg.ConfigOpts:
        backends = {
            THICK: {"lvm_volume_group": THICK},
            THIN: {"lvm_volume_group": THIN, "lvm_type": "thin", "lvm_thin_pools": [POOL]},
            TAGGED: {"lvm_volume_group": TAGGED, "lvm_pv_tags": [FAST, SLOW]},
        }
        used = list(dict.fromkeys(self._groups()))
        return configuration.load(
            [],
            overrides={
                "DEFAULT": {"enabled_backends": used, "host": "here", "state_path": str(directory / "state")},
                **{name: {"volume_driver": "lvm", **backends[name]} for name in used},
                # Longer than a run takes here: a heartbeat would come in one run, and not in the next.
                "migration": {"lease_seconds": 3600.0, "heartbeat_seconds": 60.0, "cleanup_delay_seconds": 0.01},
            },
        )

    def mark(self, calls: MarkedCalls) -> None:
        calls.mark_programs(Commands, "run", passed_over=_ONLY_LOOKING)

    def fill(self, directory: Path, volume: Volume, pattern: Pattern) -> None:
        path = Path("/dev") / PoolAddress.parse(volume.host).backend / (volume.provider_id or volume.backend_name)
        patterns.fill(path, pattern)

    def objects(self, directory: Path, pool: str) -> Mapping[str, str]:
        group = PoolAddress.parse(pool).backend
        names = [name for name in self._volumes(pool) if name.startswith("volume-")]
        return {name: _digest(Path("/dev") / group / name) for name in names}

    def leftovers(self, directory: Path) -> Sequence[str]:
        """Whatever is no volume and no part of the thin pool, and devices that were left suspended."""
        found: list[str] = []
        for group in dict.fromkeys(self._groups()):
            known = run("lvs", "-a", "--noheadings", "-o", "lv_name", group).split()
            found += [f"{group}/{name}" for name in known if not name.strip("[]").startswith(("volume-", POOL, "lvol"))]
            columns = ("--noheadings", "--separator", " ", "-o", "name,suspended")
            for line in run("dmsetup", "info", "-c", *columns).splitlines():
                name, _, state = line.strip().partition(" ")
                if name.startswith(f"{group}-") and "uspended" in state:
                    found.append(f"{name} is suspended")
        return found

    def end(self, directory: Path) -> None:
        for group in dict.fromkeys(self._groups()):
            run("pvmove", "-qq", "--abort", check=False)
            for name in run("lvs", "--noheadings", "-o", "lv_name", group).split():
                if name != POOL:
                    run("lvremove", "-qq", "-f", "-y", f"{group}/{name}", check=False)
        shutil.rmtree(directory)

    def _groups(self) -> list[str]:
        return [PoolAddress.parse(pool).backend for pool in (self.source, self.destination)]

    def _volumes(self, pool: str) -> Iterator[str]:
        """Yield the names of what is in a pool; what is being moved is where it comes from."""
        address = PoolAddress.parse(pool)
        rows = run(
            "lvs", "--noheadings", "--separator", "|", "-o", "lv_name,pool_lv,lv_layout,devices", address.backend
        )
        own = None
        if address.backend == TAGGED:
            own = run("pvs", "--noheadings", "-o", "pv_name", "-S", f"pv_tags={address.pool}").split()
        for row in dict.fromkeys(rows.split()):
            name, _, layout, devices = row.split("|")
            if "pool" in layout.split(","):
                continue
            places = [device.partition("(")[0] for device in devices.split(",")]
            is_moving = any(place.startswith("pvmove") for place in places)
            if own is None or (pool == self.source if is_moving else set(places) & set(own)):
                yield name


def _digest(path: Path) -> str:
    """Return the digest of the volume, when what its last extent has beyond it is zeroes."""
    with path.open("rb", buffering=0) as device:
        content = device.readall()
    if content[VOLUME_BYTES:].strip(b"\0"):
        return "what lies beyond the volume's end is not zeroes"
    return content_digest(io.BytesIO(content[:VOLUME_BYTES]))


def _scenario(name: str, source: str, destination: str) -> Scenario:
    bench = LvmBench(source=f"here@{source}", destination=f"here@{destination}")
    return Scenario(name=name, bench=bench, pattern=_PATTERN, act=migrate_plainly())


SCENARIOS = (
    _scenario("thick-thin", f"{THICK}#{THICK}", f"{THIN}#{POOL}"),
    _scenario("thin-thick", f"{THIN}#{POOL}", f"{THICK}#{THICK}"),
    _scenario("pvmove", f"{TAGGED}#{FAST}", f"{TAGGED}#{SLOW}"),
)
