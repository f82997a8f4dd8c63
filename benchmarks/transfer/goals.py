"""The goals of the transfer library, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.transfer.ends import LOOP
from benchmarks.transfer.peers import DD, OURS, OURS_DIGEST, OURS_TOLD
from benchmarks.transfer.results import Table

FLOOR = 0.97
"""No shape may be slower than this, as a ratio to the best peer."""
TO_BEST = {"dense": 1.25, "scattered": 1.25, "zeroes": 1.0}
TO_DD = {"dense": 1.4, "scattered": 5.0, "empty": 20.0}
CPU_TO_DD = 1 / 3
DIGEST_COST = {"dense": 0.35, "scattered": 0.10, "empty": 0.10}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One goal for one shape on one kind of ends."""

    kind: str
    shape: str
    what: str
    wanted: str
    found: str
    is_met: bool


def judged(kind: str) -> str:
    """Return the name of the entrant of ours that is compared with the peers.

    On loop devices that is the one that is told that the destination reads as zeroes, since the peers are told too.
    """
    return OURS_TOLD if kind == LOOP else OURS


def goals(tables: Iterable[Table]) -> list[Goal]:
    """Return all goals that the tables say something about."""
    return [goal for table in tables for goal in _goals(table)]


def _goals(table: Table) -> Iterator[Goal]:
    for name in dict.fromkeys((judged(table.kind), OURS, OURS_DIGEST)):
        if name in table.failed:
            what = f"a copy that succeeds ({name})"
            yield Goal(kind=table.kind, shape=table.shape, what=what, wanted="always", found="failed", is_met=False)
    ours, peer, dd = table.row(judged(table.kind)), table.best_peer(), table.row(DD)
    plain, digest = table.row(OURS), table.row(OURS_DIGEST)
    if ours is not None and peer is not None and ours.to_best is not None:
        wanted = TO_BEST.get(table.shape, FLOOR)
        yield _at_least(table, f"wall, to the best peer ({peer.entry.title})", wanted, ours.to_best)
    if ours is not None and dd is not None and ours.to_dd is not None:
        if table.shape in TO_DD:
            yield _at_least(table, f"wall, to {dd.entry.title}", TO_DD[table.shape], ours.to_dd)
        if dd.cpu_seconds > 0:
            yield _at_most(
                table, f"CPU per GiB, of that of {dd.entry.title}", CPU_TO_DD, ours.cpu_seconds / dd.cpu_seconds
            )
    if plain is not None and digest is not None and table.shape in DIGEST_COST:
        cost = digest.wall.median / plain.wall.median - 1
        yield _at_most(table, "wall that verify=digest adds", DIGEST_COST[table.shape], cost)


def _at_least(table: Table, what: str, wanted: float, found: float) -> Goal:
    return Goal(
        kind=table.kind,
        shape=table.shape,
        what=what,
        wanted=f"at least {wanted:.2f}",
        found=f"{found:.2f}",
        is_met=found >= wanted,
    )


def _at_most(table: Table, what: str, wanted: float, found: float) -> Goal:
    return Goal(
        kind=table.kind,
        shape=table.shape,
        what=what,
        wanted=f"at most {wanted:.0%}",
        found=f"{found:.0%}",
        is_met=found <= wanted,
    )
