"""The scenarios of volmig's own sweep, on files."""

from __future__ import annotations

from volmig.model import Phase
from volmig.testing import patterns
from volmig.testing.killsweep.bench import MIB, FileBench
from volmig.testing.killsweep.scenario import Act, Scenario, Stage, finish, migrate_plainly
from volmig.transfer.flow import copying

FILES = FileBench({"volume_driver": "file"})
HANDLES = FileBench({"volume_driver": "fake", "fake_connection": "handle"})
FAKE = FileBench({"volume_driver": "fake"})

_SLOW_BYTES = 16 * MIB
"""Bytes a second: the copy of the volume below, which has 2.5 MiB of data, takes tenths of one."""

_EXTENDED_BYTES = 164 * MIB

_RETENTION_SECONDS = 30 * 86400
"""Longer than the days that pass while it is recovered."""

_SEGMENTS = patterns.Pattern(
    size_bytes=160 * MIB, seed=3, data=tuple((at * MIB, at * MIB + 64 * 1024) for at in range(0, 160, 4))
)
"""Ten segments of the digest, each with a little data: as many checkpoints as a copy of gigabytes would make."""


def checkpoint_each_segment() -> None:
    """Make the copies of this process flush, and make a checkpoint, at each segment instead of each 2 seconds."""
    copying._FLUSH_SECONDS = 0.0


def cancel_during_copy(stage: Stage) -> None:
    """Cancel a slow copy while it is under way."""
    handle = stage.migrate(force_host_copy=True, bandwidth_limit_bytes=_SLOW_BYTES)
    stage.wait_for_copy(handle)
    handle.cancel()
    finish([handle])


def pause_during_copy(stage: Stage) -> None:
    """Pause a slow copy while it is under way, and resume it."""
    handle = stage.migrate(force_host_copy=True, bandwidth_limit_bytes=_SLOW_BYTES)
    stage.wait_for_copy(handle)
    stage.engine.pause_migration(handle.id)
    finish([handle])
    resume(stage)


def resume(stage: Stage) -> None:
    """Resume what is paused."""
    for migration in stage.migrations():
        if migration.phase is Phase.PAUSED:
            finish([stage.engine.resume_migration(migration.id)])


def migrate_and_retain(stage: Stage) -> None:
    """Move the volume, and keep its old storage."""
    finish([stage.migrate(force_host_copy=True, source_retention_seconds=_RETENTION_SECONDS)])


def roll_back(*, discard_changes: bool = False) -> Act:
    """Return an act that takes the volume's migration back."""

    def act(stage: Stage) -> None:
        (migration,) = stage.migrations()
        finish([stage.engine.rollback_migration(migration.id, discard_changes=discard_changes)])

    return act


def retire(stage: Stage) -> None:
    """End the retention of the volume's old storage."""
    (migration,) = stage.migrations()
    stage.engine.retire_migration(migration.id)


def during_copy(act: Act) -> Act:
    """Return an act that is done while a slow copy of the volume is under way, and makes it give way."""

    def interrupt(stage: Stage) -> None:
        handle = stage.migrate(force_host_copy=True, bandwidth_limit_bytes=_SLOW_BYTES)
        stage.wait_for_copy(handle)
        act(stage)

    return interrupt


def extend(stage: Stage) -> None:
    """Enlarge the volume."""
    stage.engine.extend_volume(stage.volume_id, _EXTENDED_BYTES)


def delete(stage: Stage) -> None:
    """Delete the volume."""
    stage.engine.delete_volume(stage.volume_id)


_ENDED = frozenset({Phase.CANCELLED, Phase.SUCCESS})

SCENARIOS = (
    Scenario(name="block", bench=FILES, act=migrate_plainly(force_host_copy=True), instants=10),
    Scenario(name="block-locked", bench=FILES, act=migrate_plainly(force_host_copy=True, lock_volume=True)),
    Scenario(name="file", bench=HANDLES, act=migrate_plainly(force_host_copy=True), instants=10),
    Scenario(name="file-locked", bench=HANDLES, act=migrate_plainly(force_host_copy=True, lock_volume=True)),
    Scenario(name="driver", bench=FILES, act=migrate_plainly(), instants=5),
    Scenario(name="driver-locked", bench=FILES, act=migrate_plainly(lock_volume=True)),
    Scenario(name="driver-fake", bench=FAKE, act=migrate_plainly()),
    Scenario(
        name="copy",
        bench=FILES,
        act=migrate_plainly(force_host_copy=True, bandwidth_limit_bytes=_SLOW_BYTES),
        pattern=_SEGMENTS,
        adjust=checkpoint_each_segment,
        instants=40,
    ),
    Scenario(
        name="dd",
        bench=FILES,
        act=migrate_plainly(force_host_copy=True, engine="dd"),
        pattern=_SEGMENTS,
        instants=10,
    ),
    Scenario(
        name="cancel",
        bench=FILES,
        act=cancel_during_copy,
        pattern=_SEGMENTS,
        outcomes=_ENDED,
    ),
    Scenario(
        name="pause",
        bench=FILES,
        act=pause_during_copy,
        pattern=_SEGMENTS,
        adjust=checkpoint_each_segment,
        afterwards=resume,
        instants=10,
    ),
    Scenario(name="retain", bench=FILES, act=migrate_and_retain),
    Scenario(name="retire", bench=FILES, prepare=migrate_and_retain, act=retire),
    Scenario(name="rollback", bench=FILES, prepare=migrate_and_retain, act=roll_back()),
    Scenario(name="rollback-discard", bench=FILES, prepare=migrate_and_retain, act=roll_back(discard_changes=True)),
    Scenario(name="extend", bench=FILES, act=extend, pattern=_SEGMENTS, sizes=(_EXTENDED_BYTES,)),
    Scenario(
        name="extend-during-copy",
        bench=FILES,
        act=during_copy(extend),
        pattern=_SEGMENTS,
        sizes=(_EXTENDED_BYTES,),
        outcomes=_ENDED,
    ),
    Scenario(name="delete", bench=FILES, act=delete, may_be_gone=True),
    Scenario(
        name="delete-during-copy",
        bench=FILES,
        act=during_copy(delete),
        pattern=_SEGMENTS,
        outcomes=_ENDED,
        may_be_gone=True,
    ),
)
