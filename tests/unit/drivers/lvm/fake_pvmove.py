"""A fake of LVM, as far as moving extents goes: it answers as LVM 2.03.16 was seen to answer, and keeps its rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from volmig.drivers.lvm.commands import Commands, Completed

EXTENT_BYTES = 4 * 1024 * 1024


@dataclass
class Moving:
    """A pvmove that has begun."""

    source: str
    target: str
    extents: dict[str, int]
    """How many extents of which volume."""


@dataclass
class FakeLvm:
    """One volume group, ``v``. Volumes lie on physical volumes by numbers of extents."""

    capacity: dict[str, int]
    volumes: dict[str, dict[str, int]]
    moves: list[Moving] = field(default_factory=list)
    segtypes: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    missing_pvs: int = 0
    is_active: bool = True
    copied: list[str] = field(default_factory=list)
    """What the mirror's status says at the first looks."""
    health: str = "AA"
    difference: int | None = None
    """Where the sides of a mirror differ."""
    calls: list[str] = field(default_factory=list)
    """The calls of pvmove."""
    before_pvmove: list[Callable[[], Completed | None]] = field(default_factory=list)
    """What happens when a pvmove is called, one for each; an answer takes the place of the move."""
    after_begin: list[Callable[[], Completed | None]] = field(default_factory=list)
    """What happens when a move has begun and is not done, likewise."""

    def commands(self) -> Commands:
        return Commands(run=self.run, pause=lambda _: None)

    def run(self, command: Sequence[str], stdin: bytes | None) -> Completed:
        words = list(command)
        if words[0] in {"timeout", "pvmove"}:
            self.calls.append(" ".join(words))
        while words[0] == "timeout":
            words = words[3:]
        if words[0] == "dmsetup":
            return self._mirror(words[1], words[2])
        if words[0] == "lvchange":
            self.is_active = True
            return done()
        if words[0] == "pvmove":
            return self._abort(words[2]) if words[1] == "--abort" else self._pvmove(words)
        rows = {"lvs": self._lvs, "vgs": self._vgs, "pvs": self._pvs}[words[0]]()
        fields = words[words.index("-o") + 1].split(",")
        part = [{name: row.get(name, "") for name in fields} for row in rows]
        return done(json.dumps({"report": [{"seg": part}]}))

    def free(self, pv: str) -> int:
        used = sum(places.get(pv, 0) for places in self.volumes.values())
        return self.capacity[pv] - used - sum(sum(m.extents.values()) for m in self.moves if m.target == pv)

    def begin(self, lv: str, source: str, target: str, count: int | None = None) -> Moving:
        """Begin a move, as a pvmove that is killed afterwards does."""
        move = Moving(source, target, {lv: self.volumes[lv][source] if count is None else count})
        self.moves.append(move)
        return move

    def finish(self, move: Moving) -> None:
        """End a move, as any program that looks at it does."""
        if move in self.moves:
            self.moves.remove(move)
            for lv, count in move.extents.items():
                places = self.volumes[lv]
                places[move.source] -= count
                places[move.target] = places.get(move.target, 0) + count

    def _pvmove(self, words: list[str]) -> Completed:
        answer = self.before_pvmove.pop(0)() if self.before_pvmove else None
        if answer is not None:
            return answer
        at = words.index("--name")
        (_, _, lv), source, targets = words[at + 1].partition("/"), words[at + 2], words[at + 3 :]
        waits = words[words.index("--interval") + 1].startswith("+")
        joined = [move for move in self.moves if move.source == source]
        if joined and waits:
            return TIMED_OUT
        if joined:
            self.finish(joined[0])
            return done()
        count = self.volumes[lv].get(source, 0)
        if not count:
            return failed("  No data to move for v.")
        target = next((pv for pv in targets if self.free(pv) >= count), None)
        if target is None:
            return failed("  Insufficient free space: 12 extents needed, but only 8 available")
        move = self.begin(lv, source, target)
        answer = self.after_begin.pop(0)() if self.after_begin else None
        if answer is not None:
            return answer
        if waits:
            return TIMED_OUT
        self.finish(move)
        return done()

    def _mirror(self, verb: str, device: str) -> Completed:
        number = int(device.removeprefix("v-pvmove"))
        if number >= len(self.moves) or not self.is_active:
            return failed(f"Device {device} not found")
        if verb == "table":
            return done("0 98304 mirror core 1 4096 2 254:2 0 254:3 0\n")
        part = self.copied.pop(0) if self.copied else "24/24"
        return done(f"0 98304 mirror 2 254:2 254:3 {part} 1 {self.health} 1 core\n")

    def _abort(self, source: str) -> Completed:
        for move in [move for move in self.moves if move.source == source]:
            self.moves.remove(move)
        return done()

    def _lvs(self) -> list[dict[str, str]]:
        rows = []
        for lv, places in self.volumes.items():
            for pv, count in places.items():
                moved = [(n, m) for n, m in enumerate(self.moves) if m.source == pv and lv in m.extents]
                inside = sum(m.extents[lv] for _, m in moved)
                for number, move in moved:
                    rows.append(self._segment(lv, f"pvmove{number}:0-{move.extents[lv] - 1}"))
                if count > inside:
                    rows.append(self._segment(lv, f"{pv}:{inside}-{count - 1}"))
        for number, move in enumerate(self.moves):
            name, total = f"pvmove{number}", sum(move.extents.values())
            ranges = f"{name}_mimage_0:0-{total - 1} {name}_mimage_1:0-{total - 1}"
            rows.append(
                {
                    "lv_name": f"[{name}]",
                    "segtype": "mirror",
                    "seg_pe_ranges": ranges,
                    "move_pv": move.source,
                    "copy_percent": "8.33",
                    "lv_role": "private,pvmove",
                }
            )
            for image, pv in enumerate((move.source, move.target)):
                rows.append(
                    {
                        "lv_name": f"[{name}_mimage_{image}]",
                        "segtype": "linear",
                        "seg_pe_ranges": f"{pv}:0-{total - 1}",
                        "lv_parent": f"[{name}]",
                        "lv_role": "private",
                    }
                )
        return rows

    def _segment(self, lv: str, ranges: str) -> dict[str, str]:
        return {
            "lv_name": lv,
            "segtype": self.segtypes.get(lv, "linear"),
            "seg_pe_ranges": ranges,
            "lv_role": self.roles.get(lv, "public"),
        }

    def _vgs(self) -> list[dict[str, str]]:
        total = sum(self.capacity.values())
        return [
            {
                "vg_name": "v",
                "vg_uuid": "u",
                "vg_size": str(total * EXTENT_BYTES),
                "vg_free": str(sum(map(self.free, self.capacity)) * EXTENT_BYTES),
                "vg_extent_size": str(EXTENT_BYTES),
                "vg_missing_pv_count": str(self.missing_pvs),
            }
        ]

    def _pvs(self) -> list[dict[str, str]]:
        return [
            {
                "pv_name": pv,
                "pv_uuid": pv,
                "pv_size": str(size * EXTENT_BYTES),
                "pv_free": str(self.free(pv) * EXTENT_BYTES),
                "pv_allocatable": "allocatable",
                "vg_name": "v",
            }
            for pv, size in self.capacity.items()
        ]


def done(stdout: str = "") -> Completed:
    return Completed(status=0, stdout=stdout.encode(), stderr=b"")


TIMED_OUT = Completed(status=124, stdout=b"", stderr=b"  ABORTING: Polling interrupted for /dev/f1.")


def failed(stderr: str) -> Completed:
    return Completed(status=5, stdout=b"", stderr=stderr.encode())
