"""What is done in a sweep's runs, and what must have become of it after each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from volmig import Engine, MigrationHandle
from volmig.model import Migration, Phase, RequestContext, Volume
from volmig.store import MigrationQuery, Store
from volmig.store.sql import SqlStore
from volmig.testing import patterns
from volmig.testing.killsweep.bench import Bench, pattern_digest
from volmig.testing.killsweep.drivers import MarkedCalls
from volmig.testing.killsweep.marks import Kill, Marks
from volmig.testing.killsweep.store import MarkedStore
from volmig.testing.patterns import Pattern

_LEASES_SECONDS = 86400.0
_RETENTIONS_SECONDS = 400 * 86400.0
_POLL_SECONDS = 0.002
_LOOK_SECONDS = 0.2


class Run:
    """One run of a scenario, as one of its processes sees it; what must outlive a process is in files.

    :param directory: the run's own.
    """

    def __init__(self, bench: Bench, directory: Path, kill: Kill | None = None) -> None:
        self.bench = bench
        self.directory = directory
        self.marks = Marks(kill)
        self._clock = directory / "clock"
        self._facts = directory / "facts"
        self._shift = timedelta(seconds=float(self._clock.read_text()) if self._clock.exists() else 0.0)

    def open_store(self) -> Store:
        """Return the run's store, on the run's clock."""
        return SqlStore(f"sqlite:///{self.directory}/state/volmig.db", clock=lambda: datetime.now(UTC) + self._shift)

    def pass_time(self, seconds: float) -> None:
        """Let time pass on the store's clock, for all processes of the run that begin from now on, and for this."""
        shift = self._shift + timedelta(seconds=seconds)
        self._clock.write_text(str(shift.total_seconds()))
        self._shift = shift

    def remember(self, **facts: Any) -> None:
        """Keep facts, as JSON values, for the run's later processes."""
        self._facts.write_text(json.dumps({**self.facts(), **facts}))

    def facts(self) -> dict[str, Any]:
        """Return what was kept."""
        found: dict[str, Any] = json.loads(self._facts.read_text()) if self._facts.exists() else {}
        return found


@dataclass(kw_only=True)
class Stage:
    """An engine at work in a run."""

    run: Run
    engine: Engine

    @property
    def volume_id(self) -> str:
        """The volume that the scenario is about."""
        return str(self.run.facts()["volume"])

    def migrate(self, **options: Any) -> MigrationHandle:
        """Begin to move the volume to the bench's destination."""
        return self.engine.migrate(self.volume_id, self.run.bench.destination, **options)

    def migrations(self) -> list[Migration]:
        """Return the volume's migrations, oldest first."""
        return list(reversed(self.engine.list_migrations(MigrationQuery(volume_id=self.volume_id))))

    def wait_for(self, is_there: Callable[[], bool], what: str) -> None:
        """Wait until something is so. :raises TimeoutError: naming *what* did not come."""
        patience = self.run.bench.patience_seconds
        deadline = time.monotonic() + patience
        while not is_there():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come within {patience:g} seconds")
            time.sleep(_POLL_SECONDS)

    def wait_for_copy(self, handle: MigrationHandle) -> None:
        """Wait until data is being copied, or the migration has come further than that."""
        self.wait_for(lambda: handle.status().stage == "copy" or handle.status().phase not in _BEFORE_COPY, "the copy")


_BEFORE_COPY = (Phase.QUEUED, Phase.STARTING, Phase.MIGRATING)

Act = Callable[[Stage], None]


def migrate_plainly(**options: Any) -> Act:
    """Return an act that moves the volume and waits for the end.

    :param options: of :meth:`volmig.Engine.migrate`.
    """

    def act(stage: Stage) -> None:
        finish([stage.migrate(**options)], patience_seconds=stage.run.bench.patience_seconds)

    return act


def nothing_more(_: Stage) -> None:
    """Do nothing."""


def finish(handles: Iterable[MigrationHandle], *, patience_seconds: float = Bench.patience_seconds) -> None:
    """Wait until migrations have ended, however they did, or are paused.

    :param patience_seconds: how long each may take.
    :raises TimeoutError: when one does neither in time.
    :raises volmig.errors.VolmigError: when one was left for recovery.
    """
    for handle in handles:
        deadline = time.monotonic() + patience_seconds
        while handle.status().phase is not Phase.PAUSED:
            try:
                handle.wait(_LOOK_SECONDS)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
            else:
                break


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A piece of work that is killed at each of its points in turn."""

    name: str
    bench: Bench
    act: Act
    """What is done, and killed, with an engine whose store and drivers have points."""
    pattern: Pattern = field(default_factory=lambda: patterns.holed(512 * 1024, seed=7))
    """The content of the volume."""
    prepare: Act = nothing_more
    """What is done before, and not killed; the volume is there, and filled."""
    afterwards: Act = nothing_more
    """What an operator does when all that could be recovered has ended, such as to resume what is paused."""
    outcomes: frozenset[Phase] = frozenset({Phase.SUCCESS})
    """Phases in which the migrations may have ended."""
    sizes: tuple[int, ...] = ()
    """Sizes that the volume may have in the end, beside its first one."""
    may_be_gone: bool = False
    """Whether the volume may have been deleted; then nothing of it may be left."""
    instants: int = 0
    """How many random instants of the act are added to the points."""
    adjust: Callable[[], None] = lambda: None
    """Changes the process before anything is done in it, such as to make checkpoints come more often."""


def make_volume(scenario: Scenario, run: Run, engine: Engine) -> Volume:
    """Make the scenario's volume and fill it."""
    volume = engine.create_volume(
        host=run.bench.source, size_bytes=scenario.pattern.size_bytes, name="swept", metadata={"key": "value"}
    )
    run.bench.fill(run.directory, volume, scenario.pattern)
    (found,) = run.bench.objects(run.directory, run.bench.source).values()
    if found != pattern_digest(scenario.pattern, scenario.pattern.size_bytes):
        raise ValueError("the volume was not filled with the scenario's pattern")
    run.remember(volume=volume.id)
    return volume


def prepare(scenario: Scenario, run: Run) -> None:
    """Do what comes before the act. Runs in a process that is not killed."""
    run.bench.begin(run.directory)
    with open_engine(run, run.open_store()) as engine:
        make_volume(scenario, run, engine)
        engine.list_backends()
        scenario.prepare(Stage(run=run, engine=engine))


def perform(scenario: Scenario, run: Run) -> None:
    """Do the act, with points."""
    with _marked_engine(run) as engine:
        scenario.act(Stage(run=run, engine=engine))


def recover(scenario: Scenario, run: Run) -> None:
    """Do what makes everything right again, with points: it can be killed as well.

    Time passes until no lease holds any more; and in the end until nothing is retained.
    """
    run.pass_time(_LEASES_SECONDS)
    with _marked_engine(run) as engine:
        engine.list_backends()
        finish(engine.recover(), patience_seconds=run.bench.patience_seconds)
        scenario.afterwards(Stage(run=run, engine=engine))
        run.pass_time(_RETENTIONS_SECONDS)
        finish(engine.recover(), patience_seconds=run.bench.patience_seconds)


@contextmanager
def open_engine(run: Run, store: Store) -> Iterator[Engine]:
    """Give an engine on a store, and close both in the end."""
    try:
        conf = run.bench.configuration(run.directory)
        with Engine(conf, store=store, context=RequestContext(user="killsweep")) as engine:
            yield engine
    finally:
        store.close()


def _marked_engine(run: Run) -> AbstractContextManager[Engine]:
    """Give an engine that passes the run's points."""
    calls = MarkedCalls(run.marks)
    calls.mark_drivers(run.bench.configuration(run.directory))
    run.bench.mark(calls)
    return open_engine(run, MarkedStore(run.open_store(), run.marks))
