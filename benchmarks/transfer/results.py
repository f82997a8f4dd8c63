"""What was measured, as values that can be stored as JSON and told from again."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Run:
    """One copy by one entrant; or one that failed."""

    kind: str
    shape: str
    entrant: str
    round_number: int
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    busy_seconds: float = 0.0
    """Processor time of the whole machine meanwhile: with write-back and loop threads, and with whatever else ran."""
    peak_bytes: int = 0
    allocated_bytes: int = 0
    """Room that the destination took afterwards."""
    is_checked: bool = False
    """The destination was read back and holds what the source holds."""
    means: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the disk gave to something that does nothing else, in bytes a second."""

    when: str
    tool: str
    read: float
    write: float
    both_read: float
    """Reading, while as much was written at the same time."""
    both_write: float

    def copy_seconds(self, data_bytes: int) -> float:
        """Return how long a copy of so much data takes at the slower side's pace."""
        return data_bytes / min(self.both_read, self.both_write)


@dataclass(frozen=True, kw_only=True)
class ShapeFacts:
    """One kind of source, as it was made."""

    title: str
    size_bytes: int
    data_bytes: int
    allocated_bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entrant, as the tables name it."""

    title: str
    is_ours: bool


@dataclass(kw_only=True)
class Results:
    """Everything of one run of the benchmark."""

    facts: dict[str, str]
    settings: dict[str, Any]
    entrants: dict[str, Entry]
    kinds: dict[str, str]
    """Titles of the kinds of ends."""
    shapes: dict[str, ShapeFacts] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Sentences: who was not measured on what, and why."""

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Return what :meth:`to_json` wrote."""
        data = json.loads(text)
        return cls(
            facts=data["facts"],
            settings=data["settings"],
            entrants={name: Entry(**entry) for name, entry in data["entrants"].items()},
            kinds=data["kinds"],
            shapes={name: ShapeFacts(**shape) for name, shape in data["shapes"].items()},
            limits=[Limit(**limit) for limit in data["limits"]],
            runs=[Run(**run) for run in data["runs"]],
            left_out=data["left_out"],
        )

    def failures(self) -> list[Run]:
        """Return the runs that went wrong."""
        return [run for run in self.runs if run.error]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The middle and the ends of some measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one entrant needed for one shape on one kind of ends."""

    entrant: str
    entry: Entry
    wall: Spread
    cpu_seconds: float
    cpu_per_gib: float
    """Processor time for each GiB of the volume, holes and all."""
    busy_seconds: float
    peak_bytes: int
    allocated_bytes: int
    is_checked: bool
    means: str
    to_best: float | None
    """The best median among the peers, divided by this one: above 1, it is faster than all of them."""
    to_dd: float | None
    """dd's median divided by this one."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One shape on one kind of ends."""

    kind: str
    shape: str
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    """Errors of those of whom no run counts, by name."""

    def row(self, entrant: str) -> Row | None:
        """Return the row of an entrant, unless it was not measured or failed."""
        return next((row for row in self.rows if row.entrant == entrant), None)

    def best_peer(self) -> Row | None:
        """Return the fastest of those that are not volmig."""
        return min((row for row in self.rows if not row.entry.is_ours), key=lambda row: row.wall.median, default=None)


def spread(values: Iterable[float]) -> Spread:
    """Return median, smallest and largest."""
    known = list(values)
    return Spread(median=statistics.median(known), low=min(known), high=max(known))


def tables(results: Results, reference: str) -> list[Table]:
    """Return a table for each kind of ends and shape that was measured.

    An entrant of which any run failed has no row: a copy that is wrong once is no copy.

    :param reference: name of the entrant whose median ``to_dd`` is about.
    """
    return [
        _table(results, kind, shape, reference)
        for kind in results.kinds
        for shape in results.shapes
        if any((run.kind, run.shape) == (kind, shape) for run in results.runs)
    ]


def _table(results: Results, kind: str, shape: str, reference: str) -> Table:
    runs: dict[str, list[Run]] = {}
    for run in results.runs:
        if (run.kind, run.shape) == (kind, shape):
            runs.setdefault(run.entrant, []).append(run)
    errors = {name: next((run.error for run in found if run.error), "") for name, found in runs.items()}
    walls = {name: spread(run.wall_seconds for run in runs[name]) for name in runs if not errors[name]}
    peers = [walls[name].median for name in walls if not results.entrants[name].is_ours]
    gibs = results.shapes[shape].size_bytes / GIB
    rows = []
    for name in (name for name in results.entrants if name in walls):
        found = runs[name]
        cpu_seconds = statistics.median(run.cpu_seconds for run in found)
        rows.append(
            Row(
                entrant=name,
                entry=results.entrants[name],
                wall=walls[name],
                cpu_seconds=cpu_seconds,
                cpu_per_gib=cpu_seconds / gibs,
                busy_seconds=statistics.median(run.busy_seconds for run in found),
                peak_bytes=max(run.peak_bytes for run in found),
                allocated_bytes=max(run.allocated_bytes for run in found),
                is_checked=any(run.is_checked for run in found),
                means=next((run.means for run in found if run.means), ""),
                to_best=min(peers) / walls[name].median if peers else None,
                to_dd=walls[reference].median / walls[name].median if reference in walls else None,
            )
        )
    failed = {name: errors[name] for name in results.entrants if errors.get(name)}
    return Table(kind=kind, shape=shape, rows=tuple(rows), failed=failed)
