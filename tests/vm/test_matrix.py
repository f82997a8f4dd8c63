"""Every pair of kinds of storage, each direction, contents and engines: what arrives is what left, and thin stays thin.

A volume goes round: each circuit passes every direction between a directory, thick and thin volumes once. Half of the
circuits ask for a host copy and move a volume whose size is no multiple of the extent; no driver has a way of its own
between these kinds, so that asking for it must change nothing else.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from volmig.model import Method, Volume

from .bench import Bench, Content, bench, files, objects
from .devices import nothing_left
from .support import MIB, Group, logical_volumes, run, volume_group

__all__ = ["nothing_left"]

EVEN = 8 * MIB
ODD = 5 * MIB + 12345
CHUNK = 64 * 1024
"""What a thin pool hands out."""

DIRECTIONS = ("file", "thick", "thin", "file", "thin", "thick", "file")
"""Each of the six directions between three kinds of storage, once."""
GROUPS = ("thick", "thick2", "thin", "unzeroed", "thick")
"""From one volume group to the other, with the same kind and with another."""

ENGINES = ("chunked", "dd")
CONTENTS = ("dense", "sparse", "garbage")


@dataclass(frozen=True, kw_only=True)
class Move:
    """One cell of the matrix."""

    source: str
    destination: str
    content: str
    engine: str
    forced: bool
    seconds: float
    allocated_bytes: int | None

    def __str__(self) -> str:
        allocated = "" if self.allocated_bytes is None else f"{self.allocated_bytes / MIB:7.2f} MiB allocated"
        forced = "forced" if self.forced else "-"
        return (
            f"{self.source:>8} -> {self.destination:<8} {self.content:<8} {self.engine:<8} {forced:<6} "
            f"whole {self.seconds:6.1f} s {allocated}"
        )


@dataclass(frozen=True, kw_only=True)
class Yard:
    """Two volume groups and a directory."""

    bench: Bench
    one: Group
    other: Group
    directory: Path
    moves: list[Move]

    def pool(self, kind: str) -> str:
        return {
            "file": "file",
            "thick": f"thick#{self.one.name}",
            "thick2": f"thick2#{self.other.name}",
            "thin": "thin#zeroed",
            "unzeroed": "unzeroed#dirty",
        }[kind]

    def group(self, kind: str) -> Group:
        return self.one if kind in {"thick", "unzeroed"} else self.other

    def make_dirty(self) -> None:
        """Fill with garbage what the next volumes are made of."""
        for group in (self.one, self.other):
            self._dirty(group, "--extents", "100%FREE")
        for group, pool in ((self.one, "dirty"), (self.other, "zeroed")):
            self._dirty(group, "--virtualsize", f"{2 * EVEN}b", "--thinpool", pool)

    @staticmethod
    def _dirty(group: Group, *size: str) -> None:
        run("lvcreate", "-q", "-y", "-W", "n", *size, "--name", "garbage", group.name)
        fd = os.open(group.device("garbage"), os.O_WRONLY)
        try:
            left = os.lseek(fd, 0, os.SEEK_END)
            os.lseek(fd, 0, os.SEEK_SET)
            while left:
                left -= os.write(fd, b"\xa5" * min(left, MIB))
            os.fsync(fd)
        finally:
            os.close(fd)
        run("lvremove", "-q", "-y", f"{group.name}/garbage")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Yard]:
    root = tmp_path_factory.mktemp("matrix")
    (root / "file").mkdir()
    pool_bytes = 24 * MIB
    with (
        volume_group(size_bytes=52 * MIB, thin_pools={"dirty": pool_bytes}) as one,
        volume_group(size_bytes=52 * MIB, thin_pools={"zeroed": pool_bytes}) as other,
    ):
        run("lvchange", "-q", "--zero", "n", f"{one.name}/dirty")
        backends = {
            "file": files(root / "file"),
            "thick": thick(one),
            "thick2": thick(other),
            "thin": thin(other, "zeroed"),
            "unzeroed": thin(one, "dirty"),
        }
        with bench(root / "state", backends, heartbeat_seconds=0.3) as made:
            yard = Yard(bench=made, one=one, other=other, directory=root / "file", moves=[])
            yield yard
            tell(request, yard.moves)


def thick(group: Group) -> dict[str, str]:
    # What a volume leaves is not cleared, so that the next one is made of it.
    return {"volume_driver": "lvm", "lvm_volume_group": group.name, "volume_clear": "none"}


def thin(group: Group, pool: str) -> dict[str, str]:
    return {"volume_driver": "lvm", "lvm_volume_group": group.name, "lvm_type": "thin", "lvm_thin_pools": pool}


def tell(request: pytest.FixtureRequest, moves: Sequence[Move]) -> None:
    """Show the matrix, and leave it with the results of the run."""
    lines = [f"matrix: {len(moves)} migrations", *map(str, moves)]
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    for line in ("", *lines):
        reporter.write_line(line)
    if folder := os.environ.get("VOLMIG_VM_RESULTS"):
        (Path(folder) / "matrix.txt").write_text("\n".join(lines) + "\n")


EVERY_TIME = {("dense", "chunked", False), ("sparse", "chunked", True), ("garbage", "chunked", True)} | {
    (content, "dd", forced) for content, forced in (("dense", True), ("sparse", False), ("garbage", False))
}
"""What runs without ``--long``: each direction, content and engine, with a host copy asked for or not in turn."""


def cells() -> Iterator[ParameterSet]:
    """Yield every circuit."""
    for content, engine, forced in itertools.product(CONTENTS, ENGINES, (False, True)):
        marks = () if (content, engine, forced) in EVERY_TIME else (pytest.mark.long,)
        name = f"{content}-{engine}-{'forced' if forced else 'free'}"
        yield pytest.param(content, engine, forced, marks=marks, id=name)


@pytest.mark.parametrize(("content", "engine", "forced"), list(cells()))
def test_each_direction(yard: Yard, content: str, engine: str, forced: bool) -> None:
    kinds = ["unzeroed" if kind == "thin" and content == "garbage" else kind for kind in DIRECTIONS]
    circuit(yard, kinds, content, engine, forced=forced)


@pytest.mark.parametrize("engine", ["chunked", pytest.param("dd", marks=pytest.mark.long)])
def test_from_group_to_group(yard: Yard, engine: str) -> None:
    circuit(yard, GROUPS, "sparse", engine, forced=engine == "dd")


def circuit(yard: Yard, kinds: Sequence[str], what: str, engine: str, *, forced: bool) -> None:
    """Send a volume round, and look at it and at all that is left after each move."""
    holes = 0 if what == "dense" else MIB
    content = Content(size_bytes=ODD if forced else EVEN, seed=len(yard.moves), hole_bytes=holes)
    if what == "garbage":
        yard.make_dirty()
    volume = yard.bench.volume(yard.pool(kinds[0]), content, zeroed=kinds[0] == "file")
    for source, destination in itertools.pairwise(kinds):
        began = time.monotonic()
        target = f"here@{yard.pool(destination)}" + ("" if "#" in yard.pool(destination) else f"#{destination}")
        handle = yard.bench.engine.migrate(volume.id, target, engine=engine, force_host_copy=forced)
        handle.result(240)
        seconds = time.monotonic() - began
        assert handle.status().method is Method.BLOCK
        yard.bench.assert_moved(volume, yard.pool(destination), content)
        assert_only(yard, volume, destination)
        allocated = allocated_bytes(yard, volume, destination)
        yard.moves.append(
            Move(
                source=source,
                destination=destination,
                content=what,
                engine=engine,
                forced=forced,
                seconds=seconds,
                allocated_bytes=allocated,
            )
        )
        if destination == "thin":
            needed = sum(-(-end // CHUNK) * CHUNK - start for start, end in content.parts)
            assert allocated is not None
            assert needed <= allocated <= needed + CHUNK, "it is not as thin as its data"
    yard.bench.engine.delete_volume(volume.id)
    yard.bench.assert_nothing_left()
    assert_only(yard, None, "")


def assert_only(yard: Yard, volume: Volume | None, place: str) -> None:
    """Check that the volume's object is the only one in all of the storage."""
    name = None if volume is None else yard.bench.engine.show_volume(volume.id).backend_name
    assert objects(yard.directory) == ([name] if place == "file" else [])
    for group in (yard.one, yard.other):
        found = [lv for lv in logical_volumes(group) if lv not in _own(group)]
        assert found == ([name] if place not in {"", "file"} and group is yard.group(place) else [])


def _own(group: Group) -> set[str]:
    """Return the names of what a group has of itself."""
    return {"[lvol0_pmspare]"} | {
        name for pool in group.thin_pools for name in (pool, f"[{pool}_tdata]", f"[{pool}_tmeta]")
    }


def allocated_bytes(yard: Yard, volume: Volume, place: str) -> int | None:
    """Return what a thin volume takes of its pool; None for any other."""
    if place not in {"thin", "unzeroed"}:
        return None
    name = f"{yard.group(place).name}/{yard.bench.engine.show_volume(volume.id).backend_name}"
    size, percent = run("lvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "lv_size,data_percent", name).split()
    return round(int(size) * float(percent) / 100 / CHUNK) * CHUNK
