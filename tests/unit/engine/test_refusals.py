"""Every refusal has a code of its own, and changes nothing: no record, no file, no byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.unit.engine.world import DESTINATION, SIZE, SOURCE, STORES, World
from volmig import errors
from volmig.model import Attachment, Snapshot, Volume, VolumeStatus


def nothing(*_: object) -> None:
    """Arrange nothing, or put nothing there."""


@dataclass(frozen=True)
class Case:
    """What is arranged, what is asked for, and the code of the answer."""

    name: str
    code: str
    ask: Callable[[World, Volume], object]
    arrange: Callable[[World, Volume], object] = nothing
    kind: str = "file"
    options: dict[str, Any] = field(default_factory=dict)
    says: str = ""


def migrate(**options: Any) -> Callable[[World, Volume], object]:
    host = options.pop("host", DESTINATION)
    return lambda world, volume: world.engine.migrate(volume.id, host, **options)


def request(**options: Any) -> Callable[[World, Volume], object]:
    return lambda world, volume: world.engine.request_migration(volume.id, DESTINATION, **options)


def create(**options: Any) -> Callable[[World, Volume], object]:
    return lambda world, _: world.engine.create_volume(**{"host": SOURCE, "size_bytes": SIZE, **options})


def change(**changes: Any) -> Callable[[World, Volume], object]:
    return lambda world, volume: world.change(volume, **changes)


def resize(delta: int) -> Callable[[World, Volume], object]:
    return lambda world, volume: os.truncate(world.path(volume), volume.size_bytes + delta)


def exchange(make: Callable[[Any, Any], object]) -> Callable[[World, Volume], object]:
    """Put something else in the place of the volume's file; the file is beside the pools then."""

    def arrange(world: World, volume: Volume) -> None:
        path, kept = world.path(volume), world.directory / "kept"
        path.rename(kept)
        make(path, kept)

    return arrange


def down(name: str) -> Callable[[World, Volume], object]:
    def arrange(world: World, volume: Volume) -> None:
        world.fake(name).down_reason = "no power"

    return arrange


UNKNOWN_ID = "4c1c1c6e-0000-4000-8000-000000000001"

VOLUMES = [
    Case("unknown id", "volume-not-found", lambda world, _: world.engine.migrate(UNKNOWN_ID, DESTINATION)),
    Case("unknown name", "volume-not-found", lambda world, _: world.engine.migrate("nobody", DESTINATION)),
    Case("empty name", "volume-not-found", lambda world, _: world.engine.migrate("", DESTINATION)),
    Case("other case", "volume-not-found", lambda world, _: world.engine.migrate("DATA", DESTINATION)),
    Case("unknown to show", "volume-not-found", lambda world, _: world.engine.show_volume("nobody")),
    Case("unknown to delete", "volume-not-found", lambda world, _: world.engine.delete_volume("nobody")),
    Case("unknown to extend", "volume-not-found", lambda world, _: world.engine.extend_volume("nobody", 2 * SIZE)),
    Case(
        "ambiguous name",
        "volume-name-ambiguous",
        lambda world, _: world.engine.migrate("data", DESTINATION),
        lambda world, _: world.create(),
        says="2 volumes",
    ),
    Case(
        "very ambiguous name",
        "volume-name-ambiguous",
        lambda world, _: world.engine.delete_volume("data"),
        lambda world, _: [world.create(size_bytes=1) for _ in range(3)],
        says="4 volumes",
    ),
]
ADDRESSES = [
    Case("malformed", "address-malformed", migrate(host="right")),
    Case("malformed: no pool", "address-malformed", migrate(host="here@right")),
    Case("malformed: empty", "address-malformed", migrate(host="")),
    Case("malformed: path", "address-malformed", migrate(host="here@../right#right")),
    Case("unknown host", "host-not-found", migrate(host="there@right#right"), says="'there'"),
    Case("unknown backend", "backend-not-found", migrate(host="here@middle#right"), says="left, right"),
    Case("unknown pool", "pool-not-found", migrate(host="here@right#left"), says="'left'"),
    Case("same pool", "same-pool", migrate(host=SOURCE)),
    Case("create: malformed", "address-malformed", create(host="left")),
    Case("create: empty", "address-malformed", create(host="")),
    Case("create: unknown pool", "pool-not-found", create(host="here@left#other")),
]
STATES = [
    Case("in use", "volume-in-use", migrate(), lambda w, v: w.engine.attach_volume(v.id, instance="vm-7"), says="vm-7"),
    Case(
        "attached, whatever its status",
        "volume-in-use",
        migrate(),
        change(attachments=(Attachment(id="a", instance="vm"),)),
    ),
    Case(
        "snapshots", "volume-has-snapshots", migrate(), change(snapshots=(Snapshot(id="s"), Snapshot(id="t"))), says="2"
    ),
    Case("error", "wrong-status", migrate(), change(status=VolumeStatus.ERROR), says="'error'"),
    Case("extending", "wrong-status", migrate(), change(status=VolumeStatus.EXTENDING)),
    Case("deleting", "wrong-status", migrate(), change(status=VolumeStatus.DELETING)),
    Case("maintenance", "wrong-status", migrate(), change(status=VolumeStatus.MAINTENANCE)),
    Case("another format", "unsupported-format", migrate(), change(format="qcow2"), says="qcow2"),
    Case("already migrating", "already-migrating", migrate(), change(migration_id="m-1"), says="m-1"),
]
SIZES = [
    *(
        Case(f"create: size {size!r}", "size-invalid", create(size_bytes=size))
        for size in (0, -1, 1.5, "1", True, 2**63)
    ),
    *(
        Case(
            f"extend: size {size!r}",
            "size-invalid",
            lambda world, volume, size=size: world.engine.extend_volume(volume.id, size),  # type: ignore[misc]
        )
        for size in (0, -5, 2.5 * SIZE, str(2 * SIZE), True)
    ),
    Case("extend: same", "size-too-small", lambda world, volume: world.engine.extend_volume(volume.id, SIZE)),
    Case("extend: smaller", "size-too-small", lambda world, volume: world.engine.extend_volume(volume.id, 1)),
]
DESTINATIONS = [
    Case(
        "too small",
        "destination-too-small",
        migrate(),
        kind="path",
        options={"right": {"fake_capacity_bytes": SIZE - 1}},
        says=str(SIZE),
    ),
    Case("read-only", "destination-read-only", migrate(), kind="path", options={"right": {"fake_read_only": True}}),
    Case("read-only files", "destination-read-only", migrate(), options={"right": {"file_read_only": True}}),
    Case("down", "backend-down", migrate(), down("right"), kind="path", says="no power"),
    Case("source down", "backend-down", migrate(), down("left"), kind="path", says="no power"),
    Case("create: too small", "destination-too-small", create(size_bytes=2**62)),
    Case(
        "unmounted",
        "backend-down",
        migrate(),
        lambda world, _: (world.engine.list_pools(), (world.pool("right") / ".volmig-backend").unlink()),
        says="marker",
    ),
]
STORAGE = [
    Case("missing", "volume-missing", migrate(), exchange(nothing)),
    Case("shorter", "volume-size-mismatch", migrate(), resize(-1), says=str(SIZE - 1)),
    Case("longer", "volume-size-mismatch", migrate(), resize(+1), says=str(SIZE + 1)),
    Case("empty", "volume-size-mismatch", migrate(), resize(-SIZE)),
    Case("symbolic link", "unsafe-path", migrate(), exchange(lambda path, kept: path.symlink_to(kept))),
    Case("directory", "unsafe-path", migrate(), exchange(lambda path, _: path.mkdir())),
    Case("pipe", "unsafe-path", migrate(), exchange(lambda path, _: os.mkfifo(path))),
    Case("forced: missing", "volume-missing", migrate(force_host_copy=True), exchange(nothing)),
    Case("fake: shorter", "volume-size-mismatch", migrate(), resize(-1), kind="path"),
    Case("handle: shorter", "volume-size-mismatch", migrate(), resize(-1), kind="handle"),
    Case("handle: missing", "volume-missing", migrate(), exchange(nothing), kind="handle"),
]
REQUESTS = [
    Case("engine", "plugin-not-found", migrate(engine="warp"), says="'warp'"),
    Case("verify", "request-invalid", migrate(verify="trust"), says="trust"),
    Case("negative limit", "request-invalid", migrate(bandwidth_limit_bytes=-1), says="-1"),
    Case("limit as text", "request-invalid", migrate(bandwidth_limit_bytes="1 MiB")),
    Case("fractional limit", "request-invalid", migrate(bandwidth_limit_bytes=0.5)),
    Case("limit as bool", "request-invalid", migrate(bandwidth_limit_bytes=True)),
    Case("huge limit", "request-invalid", migrate(bandwidth_limit_bytes=2**63)),
    Case("queued: engine", "plugin-not-found", request(engine="warp")),
    Case("queued: verify", "request-invalid", request(verify="trust")),
    Case("queued: negative limit", "request-invalid", request(bandwidth_limit_bytes=-1)),
]
OTHERS = [
    Case("name too long", "request-invalid", create(name="x" * 256)),
    Case("name unprintable", "request-invalid", create(name="a\nb")),
    Case("metadata", "request-invalid", create(metadata={"a": 1})),
    Case("project with NUL", "request-invalid", create(project_id="a\0b")),
    Case("type too long", "request-invalid", create(volume_type="x" * 256)),
    Case("backend", "backend-not-found", lambda world, _: world.engine.show_backend("middle")),
    Case("migration", "migration-not-found", lambda world, _: world.engine.show_migration("nobody")),
    Case("handle", "migration-not-found", lambda world, _: world.engine.migration("nobody")),
    Case("history", "migration-not-found", lambda world, _: world.engine.history("nobody")),
    Case("cancel", "migration-not-found", lambda world, _: world.engine.cancel_migration("nobody")),
    Case("run", "migration-not-found", lambda world, _: world.engine.run_migration("nobody")),
    Case("detach", "request-invalid", lambda world, volume: world.engine.detach_volume(volume.id)),
    Case("path", "unsupported-operation", lambda world, volume: world.engine.volume_path(volume.id), kind="handle"),
    Case("manage: absent", "not-manageable", lambda world, _: world.engine.manage_volume("absent.img")),
    Case(
        "manage: managed",
        "already-managed",
        lambda world, v: world.engine.manage_volume(str(world.path(v)), host=SOURCE),
    ),
    Case("manage: outside", "not-manageable", lambda world, _: world.engine.manage_volume("/etc/hostname")),
    Case("manage: hidden", "not-manageable", lambda world, _: world.engine.manage_volume(".volmig-backend")),
]
CASES = [*VOLUMES, *ADDRESSES, *STATES, *SIZES, *DESTINATIONS, *STORAGE, *REQUESTS, *OTHERS]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_with_nothing_changed(make_world: Callable[..., World], case: Case, store: str) -> None:
    world = make_world(kind=case.kind, store=store, **case.options)
    volume = world.create()
    # Both backends are set up before the files are compared.
    world.engine.list_pools()
    case.arrange(world, volume)
    before = world.snapshot()
    with pytest.raises(errors.VolmigError) as caught:
        case.ask(world, volume)
    assert caught.value.code == case.code
    assert case.says in caught.value.message
    assert caught.value.hint
    assert world.snapshot() == before


def test_no_two_cases_are_called_the_same() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("store", STORES)
def test_reserved_room_counts(make_world: Callable[..., World], store: str) -> None:
    """Two volumes that fit one by one do not fit together, although neither has arrived yet."""
    world = make_world(kind="path", store=store, right={"fake_capacity_bytes": 2 * SIZE - 1})
    one, two = world.create(name="one"), world.create(name="two")
    world.engine.request_migration(one.id, DESTINATION)
    before = world.snapshot()
    with pytest.raises(errors.DestinationTooSmall) as caught:
        world.engine.migrate(two.id, DESTINATION)
    assert caught.value.fields["free"] == SIZE - 1
    with pytest.raises(errors.DestinationTooSmall):
        world.engine.create_volume(host=DESTINATION, size_bytes=SIZE)
    assert world.snapshot() == before
    (pool,) = world.engine.show_backend("right").pools
    assert (pool.reserved_bytes, pool.available_bytes) == (SIZE, SIZE - 1)


def test_the_error_is_the_same_in_every_store(make_world: Callable[..., World]) -> None:
    found = []
    for store in STORES:
        world = make_world(store=store)
        volume = world.create()
        with pytest.raises(errors.SamePool) as caught:
            world.engine.migrate(volume.id, SOURCE)
        found.append(replace_id(caught.value, volume))
    assert found[0] == found[1]


def replace_id(error: errors.VolmigError, volume: Volume) -> dict[str, Any]:
    return {key: str(value).replace(volume.id, "ID") for key, value in error.as_dict().items()}


def test_a_record_without_storage_is_not_moved(make_world: Callable[..., World]) -> None:
    world = make_world()
    volume = world.create()
    with world.store.writing() as transaction:
        other = transaction.add_volume(replace(volume, id=UNKNOWN_ID, name="other"))
    world.engine.list_pools()
    before = world.snapshot()
    with pytest.raises(errors.VolumeObjectMissing):
        world.engine.migrate(other.id, DESTINATION)
    assert world.snapshot() == before
