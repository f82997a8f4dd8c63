"""Migrations between ``file`` backends on ext4 and xfs whose devices fail, lie, linger or vanish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from volmig import errors
from volmig.engine import MigrationHandle
from volmig.model import MigrationStatus, Phase, Volume

from .bench import Bench, Content, bench, files, objects, read_sha256
from .devices import Faulty, faulty, file_system, nothing_left, physical, remount
from .support import MIB

__all__ = ["nothing_left"]

CONTENT = Content(size_bytes=8 * MIB, seed=5)
BAD = 5 * MIB + 4096
BLOCK = 4096
SLOWLY = 4 * MIB
"""Bytes a second of a copy in whose middle something is to happen."""
CRAWLING = MIB // 8
"""Bytes a second of a copy that must not come to a place before that has gone bad."""
LEASE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Yard:
    """Two backends, each on a file system and a device of its own, and a volume on the first."""

    bench: Bench
    left: Faulty
    right: Faulty
    volume: Volume
    places: dict[str, Path]

    def move(self, **options: object) -> MigrationHandle:
        return self.bench.engine.migrate(self.volume.id, "here@right#right", **options)  # type: ignore[arg-type]

    def copies(self) -> list[Path]:
        """Return what there is of the copy at the destination."""
        return [self.places["right"] / name for name in objects(self.places["right"])]

    def assert_stayed(self, *, cancelled: bool = False) -> None:
        """Check that the volume is whole where it was, and the destination empty."""
        self.bench.assert_stayed(self.volume, "left", CONTENT, cancelled=cancelled)
        assert self.copies() == []

    def assert_can_move(self) -> None:
        """Check that the same request succeeds as soon as the devices do."""
        self.move().result(120)
        self.bench.assert_moved(self.volume, "right", CONTENT)


@pytest.fixture(params=["ext4", "xfs"])
def yard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Yard]:
    places = {name: tmp_path / name for name in ("left", "right")}
    with (
        faulty(64 * MIB, "left") as left,
        faulty(64 * MIB, "right") as right,
        file_system(request.param, left, places["left"]),
        file_system(request.param, right, places["right"]),
        bench(
            tmp_path / "state",
            {"left": files(places["left"]), "right": files(places["right"], file_fallocate="true")},
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=0.3,
            chunk_bytes=65536,
            cleanup_delay_seconds=0.1,
        ) as made,
    ):
        volume = made.volume("left", CONTENT)
        yield Yard(bench=made, left=left, right=right, volume=volume, places=places)


def after(handle: MigrationHandle, bytes_done: int, act: Callable[[], object]) -> None:
    """Do something when that much was copied."""
    for event in handle.events(0.05):
        assert not event.migration.phase.is_final, f"it ended before: {event.migration.error_message}"
        if event.stage == "copy" and event.migration.bytes_done >= bytes_done:
            act()
            return


def before_it_goes_on(handle: MigrationHandle, act: Callable[[], object]) -> None:
    """Do something when the copy has just begun, and let it go on at full speed."""
    after(handle, 1, act)
    handle.limit(0)


def break_the_copy(yard: Yard) -> None:
    """Let no write reach one block of the copy, which has its room already."""
    (copy,) = yard.copies()
    place = physical(copy, BAD)
    yard.right.fail_writes_at((place, place + BLOCK))


def test_a_block_that_cannot_be_read(yard: Yard) -> None:
    path = Path(yard.bench.path(yard.volume))
    place = physical(path, BAD)
    yard.left.fail_at((place, place + BLOCK))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        yard.move().result(120)
    assert caught.value.fields["path"] == str(path)
    assert caught.value.fields["offset"] <= BAD < caught.value.fields["offset"] + 65536
    yard.left.heal()
    yard.assert_stayed()
    yard.assert_can_move()


def test_a_block_that_cannot_be_written(yard: Yard) -> None:
    handle = yard.move(bandwidth_limit_bytes=CRAWLING)
    before_it_goes_on(handle, lambda: break_the_copy(yard))
    with pytest.raises(errors.TransferFailed, match="Input/output error") as caught:
        handle.result(120)
    assert str(yard.places["right"]) in caught.value.fields["path"]
    assert caught.value.fields["offset"] <= BAD < caught.value.fields["offset"] + 65536
    yard.right.heal()
    yard.assert_stayed()
    yard.assert_can_move()


def test_a_destination_whose_disk_is_lost(yard: Yard) -> None:
    """What cannot be deleted is on record, and goes when the storage is back."""
    handle = yard.move(bandwidth_limit_bytes=SLOWLY)
    after(handle, 2 * MIB, yard.right.vanish)
    with pytest.raises(errors.VolmigError, match=r"[Ii]nput/output error|[Rr]ead-only"):
        handle.result(120)
    found = yard.bench.engine.show_volume(yard.volume.id)
    assert (found.host, found.migration_status) == ("here@left#left", MigrationStatus.ERROR)
    assert read_sha256(yard.bench.path(found), CONTENT.size_bytes) == CONTENT.sha256
    yard.right.heal()
    remount(yard.right, yard.places["right"])
    yard.bench.restart()
    yard.bench.recover()
    yard.assert_stayed()
    yard.assert_can_move()


def test_a_source_whose_disk_is_lost(yard: Yard) -> None:
    handle = yard.move(bandwidth_limit_bytes=SLOWLY)
    after(handle, 2 * MIB, yard.left.vanish)
    with pytest.raises(errors.VolmigError, match=r"[Ii]nput/output error"):
        handle.result(120)
    yard.left.heal()
    remount(yard.left, yard.places["left"])
    yard.bench.restart()
    yard.bench.recover()
    yard.assert_stayed()
    yard.assert_can_move()


def test_writes_that_are_dropped(yard: Yard) -> None:
    handle = yard.move(bandwidth_limit_bytes=CRAWLING)

    def drop() -> None:
        (copy,) = yard.copies()
        place = physical(copy, BAD)
        yard.right.drop_writes((place, place + BLOCK))

    before_it_goes_on(handle, drop)
    with pytest.raises(errors.VerificationFailed) as caught:
        handle.result(120)
    assert caught.value.fields["offset"] <= BAD
    yard.right.heal()
    yard.assert_stayed()
    yard.assert_can_move()


def test_a_slow_destination(yard: Yard) -> None:
    """The lease is renewed, progress is told, and a request to cancel is met, however long each write takes."""
    yard.right.delay(0, 400)
    handle = yard.move(bandwidth_limit_bytes=MIB // 2)
    seen: list[tuple[int, float]] = []
    began = time.monotonic()
    for _ in handle.events(0.2):
        record = yard.bench.engine.show_migration(handle.id)
        assert not record.phase.is_final
        if record.lease_expires_at is not None:
            seen.append((record.bytes_done, record.lease_expires_at.timestamp()))
        if time.monotonic() - began > 1.5 * LEASE_SECONDS and len({done for done, _ in seen}) > 3:
            break
        assert time.monotonic() - began < 120
    assert seen[-1][1] - seen[0][1] > LEASE_SECONDS / 2, "the lease was not renewed"
    assert handle.status().epoch == 1
    began = time.monotonic()
    handle.cancel()
    while handle.status().phase is Phase.MIGRATING:
        assert time.monotonic() - began < 2, "the copy goes on"
        time.sleep(0.05)
    assert handle.wait(60).phase is Phase.CANCELLED
    yard.right.heal()
    yard.assert_stayed(cancelled=True)
