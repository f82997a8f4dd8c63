"""Opening and closing an engine, what it shows, and what it never shows."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine.world import DESTINATION, MIB, SIZE, SOURCE, World, threads
from tests.unit.waiting import LONG, let_go, until
from volmig import Engine, errors
from volmig import conf as configuration
from volmig.model import Phase, VolumeStatus
from volmig.store import MigrationQuery, VolumeQuery
from volmig.testing import patterns
from volmig.testing.memory_store import MemoryStore

SECRET = "s3cr3t-p4ssw0rd"  # noqa: S105 - made up, and looked for in what is shown


def test_with_its_own_database(tmp_path: Path) -> None:
    """As a program embeds it: no store is given, and everything outlives the engine."""
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
    overrides = {
        "DEFAULT": {"enabled_backends": ["left", "right"], "host": "here", "state_path": str(tmp_path / "a" / "state")},
        "left": {"volume_driver": "file", "file_directory": str(tmp_path / "left")},
        "right": {"volume_driver": "file", "file_directory": str(tmp_path / "right")},
    }
    with Engine(configuration.load([], overrides=overrides)) as engine:
        volume = engine.create_volume(host=SOURCE, size_bytes=SIZE, name="data")
        patterns.fill(engine.volume_path("data"), patterns.dense(SIZE))
        handle = engine.migrate("data", DESTINATION, force_host_copy=True)
    # Closing has waited for the end.
    assert handle.status().phase is Phase.SUCCESS
    with Engine(configuration.load([], overrides=overrides)) as engine:
        assert engine.show_volume(volume.id).host == DESTINATION
        assert engine.show_migration(handle.id).phase is Phase.SUCCESS
        patterns.check(engine.volume_path("data"), patterns.dense(SIZE))
        assert engine.history(handle.id)
    assert (tmp_path / "a" / "state" / "volmig.db").stat().st_mode & 0o077 == 0
    until(lambda: not threads())


def test_a_store_that_was_given_is_not_closed(make_world: Callable[..., World]) -> None:
    world = make_world()
    with Engine(world.conf(), store=world.store):
        pass
    assert world.rows()["volumes"] == []


def test_closing_waits_for_what_runs_and_refuses_what_is_new(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path", migration={"max_concurrent_migrations": 1})
    driver = world.fake("right")
    driver.faults.add("create_volume@1:hang")
    volumes = [world.create(name=name) for name in ("a", "bb")]
    handles = [world.engine.migrate(volume.id, DESTINATION, force_host_copy=True) for volume in volumes]
    until(lambda: "create_volume" in [name for name, _ in driver.calls])
    closing = threading.Thread(target=world.engine.close)
    closing.start()
    until(lambda: world.engine._closed)
    engine, volume = world.engine, volumes[0]
    refused: list[Callable[[], object]] = [
        lambda: engine.create_volume(host=SOURCE, size_bytes=1),
        lambda: engine.delete_volume(volume.id),
        lambda: engine.extend_volume(volume.id, 2 * SIZE),
        lambda: engine.manage_volume("x"),
        lambda: engine.unmanage_volume(volume.id),
        lambda: engine.attach_volume(volume.id, instance="vm"),
        lambda: engine.detach_volume(volume.id),
        lambda: engine.migrate(volume.id, DESTINATION),
        lambda: engine.request_migration(volume.id, DESTINATION),
        lambda: engine.run_migration(handles[1].id),
        engine.recover,
    ]
    for ask in refused:
        with pytest.raises(errors.EngineClosed):
            ask()
    assert closing.is_alive()
    let_go(driver, lambda: not closing.is_alive())
    closing.join(LONG)
    assert not closing.is_alive()
    for volume, handle in zip(volumes, handles, strict=True):
        assert handle.wait(0).phase is Phase.SUCCESS
        world.assert_at(volume, DESTINATION, Phase.SUCCESS)
    engine.close()


def test_an_engine_that_did_nothing_has_no_threads(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    world.engine.list_backends()
    until(lambda: not threads())
    world.engine.close()


def test_a_mistake_in_the_configuration_leaves_nothing_open(tmp_path: Path) -> None:
    overrides = {"DEFAULT": {"enabled_backends": ["one"], "host": "here"}, "one": {"volume_driver": "absent"}}
    with pytest.raises(errors.PluginNotFound):
        Engine(configuration.load([], overrides=overrides), store=MemoryStore())
    (tmp_path / "state").write_text("a file, not a directory")
    overrides = {"DEFAULT": {"enabled_backends": [], "state_path": str(tmp_path / "state")}}
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        Engine(configuration.load([], overrides=overrides))
    assert caught.value.fields["option"] == "state_path"
    assert not threads()


def test_a_backend_that_is_out_of_order_is_down_until_it_works(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    world.fake("right").faults.add("do_setup:fail")
    left, right = world.engine.list_backends()
    assert (left.up, right.up) == (True, False)
    assert "do_setup" in right.down_reason
    assert [pool.address for pool in world.engine.list_pools()] == [SOURCE]
    world.fake("right").faults.clear()
    assert world.engine.show_backend("right").up
    assert [pool.address for pool in world.engine.list_pools()] == [SOURCE, DESTINATION]


def test_names_and_lists(make_world: Callable[..., World]) -> None:
    world = make_world()
    one, two = world.create(name="one"), world.create(name="two")
    assert world.engine.show_volume("one") == world.engine.show_volume(one.id) == one
    assert [volume.id for volume in world.engine.list_volumes()] == [one.id, two.id]
    assert [volume.id for volume in world.engine.list_volumes(VolumeQuery(name="two"))] == [two.id]
    handles = [world.engine.migrate(name, DESTINATION) for name in ("one", "two")]
    for handle in handles:
        handle.wait(LONG)
    assert [each.id for each in world.engine.list_migrations()] == [handles[1].id, handles[0].id]
    assert [each.id for each in world.engine.list_migrations(MigrationQuery(volume_id=one.id))] == [handles[0].id]


def test_an_id_goes_before_a_name(make_world: Callable[..., World]) -> None:
    world = make_world()
    one = world.create(name="one")
    world.create(name=one.id)
    assert world.engine.show_volume(one.id) == one


def test_the_life_of_a_volume(make_world: Callable[..., World]) -> None:
    world = make_world(store="sqlite")
    engine = world.engine
    volume = world.create()
    attached = engine.attach_volume("data", instance="vm-7", mountpoint="/dev/vdb")
    assert attached.status is VolumeStatus.IN_USE
    assert engine.detach_volume("data").status is VolumeStatus.AVAILABLE
    assert engine.extend_volume("data", MIB).size_bytes == MIB
    assert engine.volume_path("data") == str(world.path(volume))
    engine.unmanage_volume("data")
    again = engine.manage_volume(str(world.path(volume)), name="again")
    assert (again.host, again.size_bytes) == (SOURCE, MIB)
    engine.delete_volume("again")
    assert world.objects("left") == []
    assert engine.list_volumes() == []


def test_who_asked_is_recorded(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.create()
    handle = world.engine.migrate("data", DESTINATION)
    handle.wait(LONG)
    assert handle.status().requested_by == "someone"
    assert world.engine.history(handle.id)[0].actor == "someone"


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+absent://user:{SECRET}@127.0.0.1:1/volmig",
        f"oracle://user:{SECRET}@127.0.0.1:1/volmig",
        f"postgresql://user:{SECRET}@127.0.0.1:1/volmig",
        f"mysql+pymysql://user:{SECRET}@127.0.0.1:1/volmig",
        f"sqlite://user:{SECRET}@host/volmig",
        f"sqlite:////nowhere/at/all.db?key={SECRET}",
        f"user:{SECRET}",
    ],
)
def test_a_password_is_neither_logged_nor_told(caplog: pytest.LogCaptureFixture, url: str) -> None:
    caplog.set_level(logging.DEBUG)
    conf = configuration.load([], overrides={"database": {"connection": url}})
    with pytest.raises(errors.VolmigError) as caught:
        Engine(conf)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert SECRET not in caplog.text


def test_a_drivers_secret_is_not_logged(make_world: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world = make_world(kind="handle")
    volume = world.create()
    world.fake("right").options = {**world.fake("right").options, "san_password": SECRET}
    world.fake("right").faults.add("write@0:enospc")
    world.engine.migrate(volume.id, DESTINATION, force_host_copy=True).wait(LONG)
    world.engine.list_backends()
    assert "failed" in caplog.text
    assert SECRET not in caplog.text


def test_every_failure_is_logged_with_the_ids(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(kind="handle")
    volume = world.create()
    world.fake("right").faults.add("write@0:enospc")
    handle = world.engine.migrate(volume.id, DESTINATION, force_host_copy=True)
    handle.wait(LONG)
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert any(handle.id in text and volume.id in text for text in found)


def test_a_call_that_hangs_holds_up_no_other_volume(make_world: Callable[..., World]) -> None:
    world = make_world(kind="path")
    one, two = world.create(name="a"), world.create(name="bb")
    world.fake("right").faults.add("create_volume@1:hang")
    hanging = world.engine.migrate(one.id, DESTINATION, force_host_copy=True)
    until(lambda: "create_volume" in [name for name, _ in world.fake("right").calls])
    started = time.monotonic()
    world.engine.migrate(two.id, DESTINATION, force_host_copy=True).result(LONG)
    assert time.monotonic() - started < 5
    assert hanging.status().phase is Phase.STARTING
    let_go(world.fake("right"), lambda: hanging.status().phase.is_final)
    hanging.result(LONG)
    world.assert_at(one, DESTINATION, Phase.SUCCESS)
