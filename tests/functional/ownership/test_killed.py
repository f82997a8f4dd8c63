"""Workers that are killed, and workers that cannot reach their store."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable

import pytest

from volmig.model import Phase

from ..cli_support import until
from .worker import COPIES
from .yard import LEASE_SECONDS, LEFT, MIB, RIGHT, Yard


def test_a_copy_goes_on_in_the_same_object(yard: Yard, measured: Callable[[str], None]) -> None:
    """Nobody can write to that object any more, so that what was copied is still of use."""
    size_bytes = 64 * MIB
    volume = yard.create(size_bytes)
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=16 * MIB)
    first = yard.runner(queued.id, "first")

    def has_checkpoint() -> bool:
        with yard.store.reading() as view:
            return queued.id in view.list_checkpoints()

    until(has_checkpoint, "a checkpoint is on record")
    second = yard.recoverer("second")
    first.kill()
    killed_at = time.monotonic()
    lease_end = yard.now(queued.id).lease_expires_at
    assert lease_end is not None
    until(lambda: yard.now(queued.id).epoch == 2, "another one has taken over")
    taken_after = time.monotonic() - killed_at
    with yard.store.reading() as view:
        beyond = (view.now() - lease_end).total_seconds()
    yard.engine.limit_migration(queued.id, 0)
    final = yard.await_end(queued.id)
    ended_after = time.monotonic() - killed_at
    second.end()
    assert final.phase is Phase.SUCCESS
    assert final.destination_id == queued.destination_id
    resumed = yard.outcome(queued.id, "copy")["bytes_resumed"]
    assert resumed >= 16 * MIB
    copies = [json.loads(line) for line in (yard.directory / COPIES).read_text().splitlines()]
    assert {copy["object"] for copy in copies} == {queued.destination_id}
    yard.assert_whole(volume, host=RIGHT)
    yard.assert_no_records_left()
    measured(
        f"worker killed: taken over after {taken_after:.2f} s ({beyond:.2f} s after the end of its lease of "
        f"{LEASE_SECONDS:g} s), ended after {ended_after:.2f} s; {resumed // MIB} of {size_bytes // MIB} MiB resumed"
    )


def test_a_killed_worker_while_nobody_looks(yard: Yard) -> None:
    """Whoever asks to cancel takes over, and takes back."""
    volume = yard.create(8 * MIB)
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=MIB)
    first = yard.runner(queued.id, "first")
    yard.await_copy(queued.id)
    first.kill()
    until(lambda: yard.engine.is_abandoned(yard.now(queued.id)), "its lease is over")
    yard.engine.cancel_migration(queued.id)
    assert yard.await_end(queued.id).phase is Phase.CANCELLED
    yard.assert_whole(volume, host=LEFT)
    yard.assert_no_records_left()


def test_a_pause_that_was_withdrawn_before_the_next_worker_begins(make_yard: Callable[..., Yard]) -> None:
    """The next worker has taken the migration while it was to be paused, and comes to it when it no longer is."""
    yard = make_yard(lease_seconds=60.0, heartbeat_seconds=20.0, max_concurrent=1)
    volume, another = yard.create(8 * MIB), yard.create(8 * MIB, name="another")
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=MIB)
    first = yard.runner(queued.id, "first")
    until(lambda: yard.now(queued.id).phase is Phase.MIGRATING, "it copies")
    yard.engine.pause_migration(queued.id)
    first.kill()
    second = yard.recoverer("second")
    other = yard.engine.request_migration(another.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=4 * MIB)
    until(lambda: yard.now(other.id).phase is Phase.MIGRATING, "the next worker has something to do")
    yard.end_lease(queued.id)
    until(lambda: yard.now(queued.id).epoch == 2, "the next worker has taken it")
    assert yard.now(queued.id).pause_requested_by
    yard.engine.request_resume(queued.id)
    yard.engine.limit_migration(queued.id, 0)
    final = yard.await_end(queued.id)
    yard.await_end(other.id)
    second.end()
    assert (final.phase, final.error_code) == (Phase.SUCCESS, "")
    yard.assert_no_records_left()


@pytest.mark.parametrize("busy_timeout_seconds", [0.2, 30.0])
def test_a_store_that_cannot_be_written_to(
    make_yard: Callable[..., Yard], measured: Callable[[str], None], busy_timeout_seconds: float
) -> None:
    """The worker stops writing before its lease ends, whether it waits for its turn or is told that there is none."""
    yard = make_yard(busy_timeout_seconds=busy_timeout_seconds)
    volume = yard.create(24 * MIB)
    queued = yard.engine.request_migration(volume.id, RIGHT, force_host_copy=True, bandwidth_limit_bytes=2 * MIB)
    first = yard.runner(queued.id, "first")
    yard.await_copy(queued.id)
    (name,) = yard.files()[RIGHT]
    copy = yard.directory / "right" / name
    with yard.connected(0.05) as store:
        until(lambda: _begin(store), "the lock of the store is taken")
        taken_at = time.time()
        migration = yard.now(queued.id)
        assert migration.lease_expires_at is not None
        lease_end = migration.lease_expires_at.timestamp()
        until(lambda: copy.stat().st_mtime > taken_at, "it goes on to copy for the moment")
        time.sleep(max(0.0, lease_end - time.time()) + LEASE_SECONDS / 2)
        last_write = copy.stat().st_mtime
        store.execute("ROLLBACK")
    assert last_write < lease_end
    said = first.said()
    assert "ended: [migration-abandoned]" in said
    assert copy.stat().st_mtime == last_write
    second = yard.recoverer("second")
    yard.engine.limit_migration(queued.id, 0)
    final = yard.await_end(queued.id)
    second.end()
    assert final.phase is Phase.SUCCESS
    yard.assert_whole(volume, host=RIGHT)
    yard.assert_no_records_left()
    measured(f"store locked: the last write was {lease_end - last_write:.2f} s before the end of the lease")


def _begin(store: sqlite3.Connection) -> bool:
    try:
        store.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True
