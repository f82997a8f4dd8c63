"""A FAKE of LVM's programs, with behaviour: it keeps a volume group, and volumes as regular files.

It shows what the driver does with LVM's answers, not what LVM does; `tests/vm` shows that. What is modelled: sizes in
extents, room by physical volume, thin pools, snapshots that go with their origin, selections, open devices, renaming,
and what a thick volume is given: the data of whoever had those extents before. A failure or a death can be put before
or after any command.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.drivers.lvm.fake_lines import Failed, Line, report
from volmig.drivers.lvm.commands import Completed
from volmig.drivers.lvm.devices import Devices, NotThatVolume

MIB = 1024**2
GARBAGE = b"\xa5"


@dataclass(kw_only=True)
class Pv:
    name: str
    extents: int
    tags: tuple[str, ...] = ()
    allocatable: bool = True


@dataclass(kw_only=True)
class Lv:
    name: str
    size: int
    kind: str  # thick, thin, pool, cow, thinsnap
    uuid: str = field(default_factory=lambda: uuid.uuid4().hex)
    pool: str = ""
    origin: str = ""
    pv: str = ""
    active: bool = True
    held: bool = False
    tags: list[str] = field(default_factory=list)
    zeroes: bool = True
    metadata_percent: float = 1.0
    data_percent: float | None = None
    health: str = "-"
    cow_extents: int = 0
    """What a thick snapshot takes for itself."""
    places: list[Place] = field(default_factory=list)
    """Where it lies."""


Place = tuple[str, int, int]
"""A physical volume, the first of some extents there, and how many they are."""


class Died(BaseException):
    """The process was killed at this point."""


class FakeLvm:
    """Runs commands as :data:`volmig.drivers.lvm.commands.Runner`."""

    def __init__(self, directory: Path, *, vg: str = "vg", pvs: Sequence[Pv] = (), extent: int = MIB) -> None:
        self.vg = vg
        self.uuid = "fake-vg-uuid"
        self.extent = extent
        self.pvs = list(pvs) or [Pv(name="/dev/fake0", extents=256)]
        self.lvs: dict[str, Lv] = {}
        self.left: dict[tuple[str, int], bytes] = {}
        """What is in extents that were somebody's, by physical volume and number."""
        self.exists = True
        self.exported = False
        self.missing = 0
        self.system_id = ""
        self.read_only = False
        self.dev = directory / "dev"
        (self.dev / vg).mkdir(parents=True)
        self.log: list[tuple[str, ...]] = []
        self.before: Callable[[tuple[str, ...]], None] = lambda _: None
        self.after: Callable[[tuple[str, ...]], None] = lambda _: None
        self._lock = threading.RLock()

    # --- for tests ----------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.dev / self.vg / name

    def commands(self, program: str) -> list[tuple[str, ...]]:
        return [command for command in self.log if command[0] == program]

    def add(self, name: str, size: int, **fields: Any) -> Lv:
        lv = Lv(name=name, size=size, **({"kind": "thick"} | fields))
        if lv.kind in {"thick", "cow"} and not lv.pv:
            lv.pv = self.pvs[0].name
        if lv.pv and not lv.places:
            lv.places = self._take(lv.pv, self._extents(lv))
        self.lvs[name] = lv
        if lv.kind != "pool":
            self.path(name).write_bytes(self._found_in(lv.places) if lv.kind == "thick" else b"")
            os.truncate(self.path(name), size)
        return lv

    def make_pool(self, name: str, size: int, **fields: Any) -> Lv:
        return self.add(name, size, kind="pool", pv=self.pvs[0].name, **fields)

    # --- as a runner --------------------------------------------------------------------------

    def __call__(self, command: Sequence[str], stdin: bytes | None) -> Completed:
        words = tuple(command)
        self.log.append(words)
        self.before(words)
        with self._lock:
            try:
                output = self._dispatch(words)
            except Failed as failed:
                return Completed(status=5, stdout=b"", stderr=f"  {failed.text}\n".encode())
        self.after(words)
        return Completed(status=0, stdout=output.encode(), stderr=b"  WARNING: a fake warning\n")

    def _dispatch(self, words: tuple[str, ...]) -> str:
        if "pvmove" in words:
            words = words[words.index("pvmove") :]
        while words[0] in {"sudo", "ionice", "-n", "-c3"}:
            words = words[1:]
        method = getattr(self, f"_{words[0].replace('-', '_')}", None)
        if method is None:
            raise FileNotFoundError(words[0])
        return str(method(Line(words[1:])) or "")

    # --- reports ------------------------------------------------------------------------------

    def _lvs(self, line: Line) -> str:
        self._require(line.rest[-1])
        fields = line.options["-o"].split(",")
        rows = [self._lv_row(lv) | self._vg_row() | part for lv in self.lvs.values() for part in _parts(lv, fields)]
        return report("lv", fields, [row for row in rows if line.selects(row)])

    def _vgs(self, line: Line) -> str:
        rows = [self._vg_row()] if self.exists else []
        return report("vg", line.options["-o"].split(","), [row for row in rows if line.selects(row)])

    def _pvs(self, line: Line) -> str:
        if "--segments" in line.flags:
            return self._pv_segments(line)
        rows = [
            {
                "pv_name": pv.name,
                "pv_uuid": _pv_uuid(pv.name),
                "pv_size": pv.extents * self.extent,
                "pv_free": self._free(pv) * self.extent,
                "pv_tags": ",".join(pv.tags),
                "pv_allocatable": "allocatable" if pv.allocatable else "",
                "pv_missing": "",
                "vg_name": self.vg,
            }
            for pv in self.pvs
        ]
        return report("pv", line.options["-o"].split(","), [row for row in rows if line.selects(row)])

    def _pv_segments(self, line: Line) -> str:
        rows: list[dict[str, object]] = []
        for pv in self.pvs:
            places = [(place, lv.name) for lv in self.lvs.values() for place in lv.places if place[0] == pv.name]
            places += [(place, "") for place in self._runs(pv.name, self._free_extents(pv))]
            rows += [
                {
                    "pv_name": pv.name,
                    "pv_uuid": _pv_uuid(pv.name),
                    "vg_name": self.vg,
                    "pvseg_start": first,
                    "pvseg_size": count,
                    "lv_name": name,
                }
                for (_, first, count), name in sorted(places)
            ]
        return report("pvseg", line.options["-o"].split(","), [row for row in rows if line.selects(row)])

    def _lvm(self, line: Line) -> str:
        return "  system ID: fakehost\n"

    def _vg_row(self) -> dict[str, object]:
        return {
            "vg_name": self.vg,
            "vg_uuid": self.uuid,
            "vg_size": sum(pv.extents for pv in self.pvs) * self.extent,
            "vg_free": sum(self._free(pv) for pv in self.pvs) * self.extent,
            "vg_extent_size": self.extent,
            "vg_missing_pv_count": self.missing,
            "vg_exported": "exported" if self.exported else "",
            "vg_systemid": self.system_id,
            "vg_permissions": "read-only" if self.read_only else "writeable",
        }

    def _lv_row(self, lv: Lv) -> dict[str, object]:
        snapped = {other.kind for other in self.lvs.values() if other.origin == lv.name}
        role = "public"
        role += ",origin,thickorigin" if "cow" in snapped else ",origin,thinorigin" if snapped else ""
        role += {"cow": ",snapshot,thicksnapshot", "thinsnap": ",snapshot,thinsnapshot"}.get(lv.kind, "")
        first = {"pool": "t", "thin": "V", "thinsnap": "V", "cow": "s"}.get(lv.kind, "o" if "cow" in snapped else "-")
        zero = "z" if lv.kind == "pool" and lv.zeroes else "-"
        return {
            "lv_name": lv.name,
            "lv_uuid": lv.uuid,
            "lv_size": self._extents(lv) * self.extent if lv.cow_extents else lv.size,
            "lv_attr": f"{first}wi-{'a' if lv.active else '-'}{'o' if self._is_open(lv) else '-'}-{zero}{lv.health}-",
            "lv_layout": {"pool": "thin,pool", "thin": "thin,sparse", "thinsnap": "thin,sparse"}.get(lv.kind, "linear"),
            "lv_role": "private" if lv.kind == "pool" else role,
            "pool_lv": lv.pool,
            "origin": lv.origin,
            "lv_tags": ",".join(lv.tags),
            "lv_device_open": "open" if self._is_open(lv) else "",
            "lv_active": "active" if lv.active else "",
            "data_percent": self._data_percent(lv),
            "metadata_percent": lv.metadata_percent if lv.kind == "pool" else "",
            "devices": f"{lv.pool or lv.pv}(0)",
            "segtype": "linear" if lv.kind == "thick" else lv.kind,
            "move_pv": "",
            "lv_parent": "",
            "copy_percent": "",
        }

    def _data_percent(self, lv: Lv) -> object:
        if lv.kind != "pool":
            return ""
        if lv.data_percent is not None:
            return lv.data_percent
        used = sum(self.path(other.name).stat().st_blocks * 512 for other in self.lvs.values() if other.pool == lv.name)
        return f"{100 * used / lv.size:.2f}"

    # --- changes ------------------------------------------------------------------------------

    def _lvcreate(self, line: Line) -> None:
        name = line.options["--name"]
        if name in self.lvs:
            raise Failed(f'Logical Volume "{name}" already exists in volume group "{self.vg}"')
        if "--snapshot" in line.flags:
            self._make_snapshot(name, line)
            return
        self._require(line.rest[0])
        if line.options.get("--type") == "thin":
            size = self._bytes(line.options["--virtualsize"])
            self.add(name, size, kind="thin", pool=line.options["--thinpool"])
            return
        if "--extents" in line.options:
            self._make_of(name, int(line.options["--extents"]), line)
            return
        size = self._bytes(line.options["--size"])
        pv = self._allocate(size // self.extent, line.rest[1:])
        self.add(name, size, kind="pool" if line.options.get("--type") == "thin-pool" else "thick", pv=pv)

    def _make_of(self, name: str, extents: int, line: Line) -> None:
        """Make a volume of some of the extents that the command names."""
        places: list[Place] = []
        for word in line.rest[1:]:
            device, _, numbers = word.rpartition(":")
            first, last = map(int, numbers.split("-"))
            pv = next(pv for pv in self.pvs if pv.name == device and pv.allocatable)
            places += self._runs(device, [n for n in self._free_extents(pv) if first <= n <= last])
        if sum(count for _, _, count in places) < extents:
            raise Failed(f"Insufficient free space: {extents} extents needed, but only some available")
        size = extents * self.extent
        self.add(name, size, kind="thick", pv=places[0][0], places=places, tags=line.all("--addtag"))

    def _make_snapshot(self, name: str, line: Line) -> None:
        origin = self._lv(line.rest[0])
        if origin.kind == "thin":
            self.add(name, origin.size, kind="thinsnap", pool=origin.pool, origin=origin.name)
        else:
            chunks = -(-origin.size // 4096)
            most = -(-(chunks + chunks // 256 + 2) * 4096 // self.extent)
            number, _, share = line.options["--extents"].partition("%")
            if share:  # which LVM takes as the most: it makes do with what is free
                extents = min(most, origin.size // self.extent * int(number) // 100, self._most_free(line.rest[1:]))
            else:
                extents = min(most, int(number))
            pv = self._allocate(extents, line.rest[1:])
            self.add(name, origin.size, kind="cow", origin=origin.name, pv=pv, cow_extents=extents)

    def _lvconvert(self, line: Line) -> None:
        lv = self._lv(line.rest[0])
        if "--splitsnapshot" not in line.flags or lv.kind != "cow":
            raise Failed(f"Command not permitted on LV {self.vg}/{lv.name}.")
        if self._is_open(lv):
            raise Failed(f"Logical volume {self.vg}/{lv.name} in use.")
        lv.kind, lv.origin, lv.size, lv.cow_extents = "thick", "", self._extents(lv) * self.extent, 0
        self.path(lv.name).write_bytes(GARBAGE * lv.size)  # the origin's old blocks

    def _lvremove(self, line: Line) -> None:
        self._require(line.rest[-1])
        for lv in [lv for lv in self.lvs.values() if line.selects(self._lv_row(lv))]:
            if self._is_open(lv):
                raise Failed(f"Logical volume {self.vg}/{lv.name} in use.")
            for other in [other for other in self.lvs.values() if other.kind == "cow" and other.origin == lv.name]:
                self._forget(other)
            for other in self.lvs.values():
                if other.origin == lv.name:
                    other.origin, other.kind = "", "thin"
            self._forget(lv)

    def _forget(self, lv: Lv) -> None:
        self._leave(lv)
        del self.lvs[lv.name]
        self.path(lv.name).unlink(missing_ok=lv.kind == "pool")

    def _lvrename(self, line: Line) -> None:
        vg, old, new = line.rest
        self._require(vg)
        if new in self.lvs:
            raise Failed(f'Logical Volume "{new}" already exists in volume group "{vg}"')
        lv = self._lv(f"{vg}/{old}")
        if lv.kind != "pool":
            self.path(old).rename(self.path(new))
        del self.lvs[old]
        for other in self.lvs.values():
            if other.origin == old:
                other.origin = new
            if other.pool == old:
                other.pool = new
        lv.name = new
        self.lvs[new] = lv

    def _lvextend(self, line: Line) -> None:
        lv = self._lv(line.rest[0])
        size = self._bytes(line.options["--size"])
        if size <= lv.size:
            raise Failed(f"New size ({size}) matches existing size ({lv.size}).")
        if lv.kind == "thick":
            pv = next(pv for pv in self.pvs if pv.name == lv.pv)
            if (size - lv.size) // self.extent > self._free(pv):
                raise Failed(f"Insufficient free space: {size} needed, but only {self._free(pv)} available")
            more = self._take(lv.pv, (size - lv.size) // self.extent)
            lv.places += more
            with self.path(lv.name).open("ab") as file:
                file.write(self._found_in(more))
        os.truncate(self.path(lv.name), size)
        lv.size = size

    def _lvchange(self, line: Line) -> None:
        if "-S" in line.options:
            chosen = [lv for lv in self.lvs.values() if line.selects(self._lv_row(lv))]
        else:
            chosen = [self._lv(line.rest[-1])]
        for lv in chosen:
            lv.tags += [tag for tag in line.all("--addtag") if tag not in lv.tags]
            lv.tags[:] = [tag for tag in lv.tags if tag not in line.all("--deltag")]
            if "-ay" in line.flags:
                lv.active = True

    def _blkdiscard(self, line: Line) -> None:
        start, length = int(line.options["--offset"]), int(line.options["--length"])
        with Path(line.rest[0]).open("r+b") as file:
            file.seek(start)
            file.write(bytes(length) if "--zeroout" in line.flags else GARBAGE * length)

    def _pvmove(self, line: Line) -> None:
        if "--name" not in line.options:  # nothing is under way here
            return
        lv = self._lv(line.options["--name"])
        source, *targets = line.rest
        if lv.pv != source:
            raise Failed(f"No data to move for {self.vg}")
        self._leave(lv)
        lv.pv = self._allocate(lv.size // self.extent, targets)
        lv.places = self._take(lv.pv, lv.size // self.extent)

    # --- shared -------------------------------------------------------------------------------

    def _lv(self, path: str) -> Lv:
        vg, _, name = path.rpartition("/")
        self._require(vg)
        if name not in self.lvs:
            raise Failed(f"Failed to find logical volume {path}")
        return self.lvs[name]

    def _require(self, vg: str) -> None:
        if not self.exists or vg != self.vg:
            raise Failed(f'Volume group "{vg}" not found')

    def _allocate(self, extents: int, wanted: Sequence[str]) -> str:
        fit = [pv for pv in self.pvs if not wanted or pv.name in wanted or {f"@{tag}" for tag in pv.tags} & {*wanted}]
        for pv in fit:
            if pv.allocatable and self._free(pv) >= extents:
                return pv.name
        raise Failed(f"Insufficient free space: {extents} extents needed, but only 0 available")

    def _free(self, pv: Pv) -> int:
        return len(self._free_extents(pv))

    def _free_extents(self, pv: Pv) -> list[int]:
        places = [place for lv in self.lvs.values() for place in lv.places if place[0] == pv.name]
        return sorted({*range(pv.extents)} - {n for _, first, count in places for n in range(first, first + count)})

    def _take(self, name: str, extents: int) -> list[Place]:
        """Return free extents of a physical volume, the first ones."""
        pv = next(pv for pv in self.pvs if pv.name == name)
        return self._runs(name, self._free_extents(pv)[:extents])

    def _runs(self, pv: str, numbers: Sequence[int]) -> list[Place]:
        runs: list[Place] = []
        for number in numbers:
            if runs and number == runs[-1][1] + runs[-1][2]:
                runs[-1] = (pv, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((pv, number, 1))
        return runs

    def _found_in(self, places: Sequence[Place]) -> bytes:
        numbers = ((pv, n) for pv, first, count in places for n in range(first, first + count))
        return b"".join(self.left.get(number, GARBAGE * self.extent) for number in numbers)

    def _leave(self, lv: Lv) -> None:
        """Keep what a volume holds in the extents that it leaves."""
        if lv.kind == "thick":
            content = self.path(lv.name).read_bytes()
            numbers = [(pv, n) for pv, first, count in lv.places for n in range(first, first + count)]
            self.left |= {n: content[i * self.extent : (i + 1) * self.extent] for i, n in enumerate(numbers)}

    def _most_free(self, wanted: Sequence[str]) -> int:
        return max(self._free(pv) for pv in self.pvs if not wanted or {f"@{tag}" for tag in pv.tags} & {*wanted})

    def _extents(self, lv: Lv) -> int:
        return lv.cow_extents or lv.size // self.extent

    def _bytes(self, text: str) -> int:
        size = int(text.removesuffix("b"))
        return -(-size // self.extent) * self.extent

    def _is_open(self, lv: Lv) -> bool:
        return lv.held


class FakeDevices(Devices):
    """The devices of a :class:`FakeLvm`: regular files, known by their inodes."""

    def __init__(self, lvm: FakeLvm) -> None:
        super().__init__(dev=lvm.dev, wait_seconds=0)
        object.__setattr__(self, "_lvm", lvm)

    def _uuid(self, fd: int) -> str:
        lvm: FakeLvm = object.__getattribute__(self, "_lvm")
        return f"LVM-{lvm.uuid}{self._lv(fd).uuid}".replace("-", "")

    def _lv(self, fd: int) -> Lv:
        lvm: FakeLvm = object.__getattribute__(self, "_lvm")
        for lv in list(lvm.lvs.values()):
            path = lvm.path(lv.name)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(fd)):
                return lv
        raise NotThatVolume("no volume of the fake")


def _pv_uuid(name: str) -> str:
    return f"uuid{name.replace('/', '-')}"


def _parts(lv: Lv, fields: Sequence[str]) -> list[dict[str, object]]:
    """Return what tells of each segment, when that is asked for."""
    if "seg_pe_ranges" not in fields or not lv.places:
        return [{}]
    starts = [sum(count for _, _, count in lv.places[:i]) for i in range(len(lv.places))]
    return [
        {"seg_start_pe": start, "seg_pe_ranges": f"{pv}:{first}-{first + count - 1}"}
        for start, (pv, first, count) in zip(starts, lv.places, strict=True)
    ]
