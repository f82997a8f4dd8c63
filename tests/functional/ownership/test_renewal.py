"""Leases that are renewed too late, or taken anew by the very process that has lost them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from volmig import Engine, errors
from volmig import conf as configuration
from volmig.migration.move import Move
from volmig.migration.steps import data
from volmig.model import Phase
from volmig.store.sql import SqlStore
from volmig.testing import patterns
from volmig.transfer import CopiedData

from ..cli_support import until
from .yard import LEASE_SECONDS, MIB, RIGHT, Yard


class SlowStore:
    """A store that takes its time to commit some renewals: a worker's own time may be over before it knows of one."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.delays: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        with self._store.writing() as transaction:
            yield transaction
            if self.delays and threading.current_thread().name == "volmig-leases":
                time.sleep(self.delays.pop(0))


@pytest.fixture
def slow(yard: Yard) -> Iterator[tuple[Engine, SlowStore]]:
    store = SlowStore(SqlStore(f"sqlite:///{yard.database}", busy_timeout_seconds=5.0))
    engine = Engine(configuration.load([str(yard.directory / "volmig.conf")]), store=store)
    yield engine, store
    engine.close()
    store.close()


def test_a_renewal_that_is_recorded_late(
    yard: Yard, slow: tuple[Engine, SlowStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has stopped in time, and ends when the lease is there again. Nobody has asked to cancel it."""
    engine, store = slow
    original = data._copy

    def copy(move: Move, checkpoint: Any) -> CopiedData:
        try:
            return original(move, checkpoint)
        except errors.TransferCancelled:
            time.sleep(LEASE_SECONDS / 4)
            raise

    monkeypatch.setattr(data, "_copy", copy)
    volume = yard.create(12 * MIB)
    handle = engine.migrate(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=2 * MIB)
    yard.await_copy(handle.id)
    # The first one is in time; when the second one is, its time has passed by the worker's clock.
    store.delays += [LEASE_SECONDS / 2, LEASE_SECONDS * 0.3]
    until(lambda: not store.delays, "the second renewal is under way")
    time.sleep(LEASE_SECONDS)
    yard.engine.limit_migration(handle.id, 0)
    # Where the worker has given up, another one goes on.
    until(lambda: yard.engine.take_over_if_abandoned(yard.now(handle.id)) or yard.now(handle.id).phase.is_final, "end")
    final = yard.await_end(handle.id)
    assert (final.phase, final.error_code) == (Phase.SUCCESS, "")
    yard.assert_whole(volume, host=RIGHT)
    yard.assert_no_records_left()


def test_a_lease_that_the_same_process_takes_again(make_yard: Callable[..., Yard]) -> None:
    """The end of what was begun under the old lease must not end the new one."""
    yard = make_yard(driver_timeout_seconds=60.0)
    volume = yard.create(6 * MIB)
    yard.hold("before create_volume")
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=2 * MIB)
    worker = yard.recoverer("worker")
    yard.await_arrival("before create_volume")
    yard.end_lease(queued.id)
    yard.await_copy(queued.id)
    assert yard.now(queued.id).epoch == 2
    yard.open_gate()
    final = yard.await_end(queued.id)
    worker.end()
    assert final.phase is Phase.SUCCESS
    assert final.epoch == 2, "the new lease was not renewed"
    now = yard.engine.show_volume(volume.id)
    patterns.check(yard.path(now), patterns.dense(volume.size_bytes))
    left = set(yard.files()[RIGHT]) - {yard.path(now).name}
    # What was made under the old lease is on record, to be looked for once more.
    with yard.store.reading() as view:
        assert left <= {f"volume-{retired.name_id}" for retired in view.list_retired()}
