"""The runs: every entrant on every shape and kind of ends, in rotating order, each from cold caches and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.transfer import ends, machine, shapes
from benchmarks.transfer.content import digest_of
from benchmarks.transfer.ends import Pair
from benchmarks.transfer.peers import Entrant, Ours, Peer, rotated
from benchmarks.transfer.programs import RunFailed, Usage, run_all
from benchmarks.transfer.results import Results, Run, ShapeFacts
from benchmarks.transfer.shapes import MIB, Shape, Source
from benchmarks.transfer.worker import Worker

_WARM_UP_BYTES = 2 * MIB


class Bench:
    """Measures in one directory; a context manager that ends what it started."""

    def __init__(
        self,
        directory: Path,
        results: Results,
        *,
        check: Callable[[], None],
        say: Callable[[str], None],
        timeout_seconds: float,
        clones: bool,
        cool: Callable[[Sequence[Path]], None] = machine.make_cold,
    ) -> None:
        self._directory = directory
        self._results = results
        self._check = check
        self._say = say
        self._timeout_seconds = timeout_seconds
        self._clones = clones
        self._cool = cool
        self._workers: dict[tuple[str, str], Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            for worker in self._workers.values():
                stack.callback(worker.close)
            self._workers.clear()

    def run(
        self, shape: Shape, size_bytes: int, kinds: Mapping[str, Sequence[Entrant]], repeats: int, *, check_all: bool
    ) -> None:
        """Make the source of a shape, and have everybody copy it *repeats* times.

        :param kinds: the entrants on each kind of ends.
        :param check_all: check what arrived after each run, and not only after an entrant's first.
        """
        self._say(f"{shape.name}: making the source")
        path = self._directory / f"source-{shape.name}"
        with contextlib.ExitStack() as stack:
            stack.callback(path.unlink, missing_ok=True)
            source = shapes.make(shape, path, size_bytes, self._check)
            self._results.shapes[shape.name] = ShapeFacts(
                title=shape.title,
                size_bytes=source.size_bytes,
                data_bytes=source.data_bytes,
                allocated_bytes=source.allocated_bytes,
                digest=source.digest,
            )
            for kind, entrants in kinds.items():
                with ends.opened(kind, source.path, read_only=True) as opened:
                    for round_number in range(repeats):
                        for entrant in rotated(entrants, round_number):
                            run = Run(kind=kind, shape=shape.name, entrant=entrant.name, round_number=round_number)
                            run = self._one(run, entrant, source, opened, must_check=check_all or round_number == 0)
                            self._results.runs.append(run)
                            self._say(self._told(run, repeats))

    def _one(self, run: Run, entrant: Entrant, source: Source, opened: str, *, must_check: bool) -> Run:
        """Return *run* with what was measured, or with the error."""
        worker = self._warm_worker(entrant, run.kind) if isinstance(entrant, Ours) else None
        with ends.fresh(self._directory / "destination", source.size_bytes) as backing:
            try:
                with ends.opened(run.kind, backing, read_only=False) as destination:
                    pair = Pair(
                        kind=run.kind,
                        source=opened,
                        destination=destination,
                        size_bytes=source.size_bytes,
                        clones=self._clones,
                    )
                    self._cool([source.path, backing])
                    self._warm_programs(entrant)
                    busy_before = machine.busy_seconds()
                    usage = self._copy(entrant, worker, pair)
                    busy_seconds = machine.busy_seconds() - busy_before
                allocated_bytes = backing.stat().st_blocks * 512
                if must_check:
                    self._judge(backing, source)
            except (RunFailed, OSError) as exc:
                if worker is not None:
                    self._workers.pop((entrant.name, run.kind)).close()
                return dataclasses.replace(run, error=str(exc))
        return dataclasses.replace(
            run,
            wall_seconds=usage.wall_seconds,
            cpu_seconds=usage.cpu_seconds,
            busy_seconds=busy_seconds,
            peak_bytes=usage.peak_bytes,
            allocated_bytes=allocated_bytes,
            is_checked=must_check,
            means=usage.means,
        )

    def _judge(self, backing: Path, source: Source) -> None:
        """Return when the file reads, past the cache, as the source does."""
        self._cool([backing])
        if digest_of(backing, source.size_bytes, self._check) != source.digest:
            raise RunFailed("the destination does not hold what the source holds")

    def _copy(self, entrant: Entrant, worker: Worker | None, pair: Pair) -> Usage:
        if isinstance(entrant, Peer):
            return run_all(entrant.commands(pair), check=self._check, timeout_seconds=self._timeout_seconds)
        assert worker is not None
        request = {
            "source": pair.source,
            "destination": pair.destination,
            "size_bytes": pair.size_bytes,
            "verify": entrant.verify,
            "destination_is_zero": entrant.destination_is_zero,
        }
        return worker.copy(request, check=self._check, timeout_seconds=self._timeout_seconds)

    def _warm_worker(self, entrant: Ours, kind: str) -> Worker:
        """Return the entrant's process; a new one has made a small copy between ends of this kind before."""
        known = self._workers.get((entrant.name, kind))
        if known is not None:
            return known
        worker = self._workers[entrant.name, kind] = Worker()
        with contextlib.ExitStack() as stack:
            paths: list[str] = []
            for name in ("warm-up-source", "warm-up-destination"):
                backing = stack.enter_context(ends.fresh(self._directory / name, _WARM_UP_BYTES))
                if not paths:
                    backing.write_bytes(bytes(MIB) + b"\xa5" * (_WARM_UP_BYTES - MIB))
                paths.append(stack.enter_context(ends.opened(kind, backing, read_only=not paths)))
            pair = Pair(kind=kind, source=paths[0], destination=paths[1], size_bytes=_WARM_UP_BYTES, clones=False)
            with contextlib.suppress(RunFailed):  # the run that counts fails the same way, and is reported
                self._copy(entrant, worker, pair)
        return worker

    def _warm_programs(self, entrant: Entrant) -> None:
        """Have the programs themselves in the cache, which was emptied for the data's sake."""
        if not isinstance(entrant, Peer):
            return
        commands = [[program, "--version"] for program in entrant.programs]
        if not entrant.programs:
            commands = [[sys.executable, "-m", "volmig.cli", "copy", "--help"]]
        for command in commands:
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)

    def _told(self, run: Run, repeats: int) -> str:
        title = self._results.entrants[run.entrant].title
        place = f"{run.shape}, {run.kind}, {run.round_number + 1}/{repeats}: {title}"
        return f"{place}: {run.error}" if run.error else f"{place}: {run.wall_seconds:.3f} s"
