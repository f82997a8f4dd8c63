"""Results that nobody measured."""

from __future__ import annotations

from benchmarks.transfer.peers import ENTRANTS
from benchmarks.transfer.results import GIB, Entry, Limit, Results, Run, ShapeFacts


def results(walls, *, kind="file", shape="dense", cpu=None, errors=None):
    """Return results with the wall times given by entrant; *cpu* and *errors* likewise."""
    made = Results(
        facts={"processor": "one_fast|two_slow"},
        settings={"date": "2026-11-01", "size_bytes": 4 * GIB, "repeats": 3},
        entrants={entrant.name: Entry(title=entrant.title, is_ours=entrant.is_ours) for entrant in ENTRANTS},
        kinds={kind: f"{kind} to {kind}"},
        shapes={
            shape: ShapeFacts(
                title=f"the {shape} one", size_bytes=4 * GIB, data_bytes=2 * GIB, allocated_bytes=2 * GIB, digest="d"
            )
        },
        limits=[Limit(when="before", tool="fio", read=4e9, write=3e9, both_read=2 * GIB, both_write=GIB)],
        left_out=["nbdcopy: nbdcopy is missing (Debian package libnbd-bin)"],
    )
    for name, seconds in walls.items():
        made.runs += [
            Run(
                kind=kind,
                shape=shape,
                entrant=name,
                round_number=number,
                wall_seconds=wall,
                cpu_seconds=(cpu or {}).get(name, 1.0),
                is_checked=number == 0,
                means="threads" if name.startswith("volmig") else "",
            )
            for number, wall in enumerate(seconds)
        ]
    for name, error in (errors or {}).items():
        made.runs.append(Run(kind=kind, shape=shape, entrant=name, round_number=0, error=error))
    return made
