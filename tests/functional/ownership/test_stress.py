"""Many workers on one store, killed and suspended at random: no migration is ever run by two of them.

Each volume is written to between its migrations, so that a copy which writes too late would be found out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from ..cli_support import until
from .chaos import Figures, Hazards, Requests
from .proof import figures_of, problems, takeovers_in, unfinished
from .yard import Yard, repeated, without_grace

WORKERS = 8
VOLUMES = 24
EXPLAINED = ("OperationalError", "StoreBusy", "LeaseLost", "MigrationAbandoned", "TransferCancelled")
"""Errors that show in the logs when a process is suspended that holds the lock of the store, also while somebody
cancels a migration."""
SECONDS, LONG_SECONDS = 30.0, 840.0


@pytest.mark.timeout(1800)
def test_many_workers(
    make_yard: Callable[..., Yard], seed: int, is_long: bool, measured: Callable[[str], None]
) -> None:
    yard = make_yard(backends=("one", "two", "three"), driver="file")
    again = f"again: pytest tests/functional/ownership/test_stress.py --seed {seed}{' --long' if is_long else ''}"
    seconds = LONG_SECONDS if is_long else SECONDS
    try:
        with without_grace():
            found, told = _stress(yard, seed, seconds)
    except BaseException:
        measured(again)
        raise
    measured(f"{WORKERS} workers, {VOLUMES} volumes, {seconds:g} s, seed {seed}\n{told}")
    assert not found, "\n".join([again, f"{len(found)} problems:", *found[:20]])
    assert takeovers_in(yard) >= seconds / 5, f"too few takeovers to have shown anything; {again}"


def _stress(yard: Yard, seed: int, seconds: float) -> tuple[list[str], str]:
    figures = Figures()
    requests = Requests(yard, figures, seed=seed)
    requests.create(VOLUMES)
    hazards = Hazards(yard, figures, workers=WORKERS, seed=seed + 1)
    hazards.begin()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end and hazards.are_there:
            requests.round()
            time.sleep(0.05)
    finally:
        hazards.end()
    began = time.monotonic()
    until(lambda: _is_calm(yard, requests), "all migrations end when nobody disturbs them any more", 120.0)
    calm_after = time.monotonic() - began
    said = [worker.end() for worker in hazards.running]
    assert all("ended: as told" in each for each in said)
    until(lambda: _is_cleared_up(yard), "what was left is ended and cleared up", 60.0)
    found = [*problems(yard, requests.generations, figures), *_failures(yard)]
    found.extend(f"still running: {program}" for program in yard.programs().values())
    return found, f"{figures_of(yard, figures)}\nall at rest {calm_after:.2f} s after the last hazard"


def _is_calm(yard: Yard, requests: Requests) -> bool:
    requests.calm_down()
    return not unfinished(yard)


def _is_cleared_up(yard: Yard) -> bool:
    for handle in repeated(yard.engine.recover):
        handle.wait(60)
    if unfinished(yard):
        return False
    with yard.store.reading() as view:
        return not view.list_retired()


def _failures(yard: Yard) -> list[str]:
    """Return the kinds of errors in the workers' logs that no hazard explains, each with its number."""
    found: Counter[str] = Counter()
    for log in (yard.directory / "logs").iterdir():
        in_traceback = False
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                in_traceback = True
            elif in_traceback and line and not line.startswith((" ", "The above", "During")):
                in_traceback = False
                found[line.partition(":")[0]] += 1
    return [f"in the logs: {count} times {kind}" for kind, count in found.items() if not kind.endswith(EXPLAINED)]
