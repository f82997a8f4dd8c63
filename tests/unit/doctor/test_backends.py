"""Backends that cannot be examined, and what examining takes."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from tests.unit.doctor.support import codes, findings, put
from tests.unit.engine.world import SOURCE
from volmig import doctor, errors
from volmig.doctor import Severity
from volmig.drivers.base import Capability


def test_backend_that_is_down_is_a_warning_and_the_others_are_examined(make_world):
    world = make_world(kind="path")
    volume = world.create()
    world.fake("right").down_reason = "no power"
    world.path(volume).unlink()
    missing, down = findings(world)
    assert missing.code == "volume-missing"
    assert (down.code, down.severity, down.where) == ("backend-down", "warning", "here@right")
    assert down.explanation.endswith("no power")


def test_volumes_of_a_backend_that_is_down_are_not_missing(make_world):
    world = make_world(kind="path")
    volume = world.create()
    world.path(volume).unlink()
    world.fake("left").down_reason = "no power"
    assert codes(world) == ["backend-down"]


@pytest.mark.parametrize("method", ["get_volume_stats", "list_objects", "volume_exists", "do_setup"])
def test_backend_that_hangs_holds_up_no_other(make_world, method):
    world = make_world(kind="path", left={"driver_timeout_seconds": 0.3})
    volume = world.create()
    world.path(volume).unlink()
    if method == "do_setup":
        world.engine, world.store = world.open_engine()
    world.fake("left").faults.add(f"{method}:hang")
    started = time.monotonic()
    found = {each.code.value: each for each in findings(world)}
    assert time.monotonic() - started < 3
    assert found.keys() == {"backend-down", "calls-hanging"}
    assert f"1 of {method}" in found["calls-hanging"].explanation
    world.fake("left").faults.clear()


def test_store_that_cannot_be_read_is_no_matter_of_a_backend(make_world, monkeypatch):
    world = make_world(kind="path")
    world.engine.list_backends()
    put(world, "left", "stranger.img")
    reads = iter(range(3))

    class Failing:
        def reading(self):
            if next(reads, None) in (0, 1):
                return world.store.reading()
            raise errors.StoreUnreachable(database="it", reason="the network is gone")

    with pytest.raises(errors.StoreUnreachable):
        doctor.examine(Failing(), world.engine._backends)


def test_driver_that_fails_is_told_once(make_world):
    world = make_world(kind="path")
    for number in range(3):
        world.path(world.create(name=f"{number}")).unlink()
    world.fake("left").faults.add("volume_exists:fail")
    [found] = findings(world)
    assert (found.code, found.where) == ("backend-down", "here@left")
    world.fake("left").faults.clear()
    world.fake("left").faults.add("list_objects:nonsense")
    assert "backend-down" in codes(world)


def test_backend_without_lists(make_world, monkeypatch):
    world = make_world(kind="path")
    volume = world.create()
    for name in ("left", "right"):
        driver = world.fake(name)
        monkeypatch.setattr(driver, "capabilities", driver.capabilities - {Capability.LIST})
    first, _ = found = findings(world)
    assert {each.code.value for each in found} == {"backend-unlisted"}
    assert first.severity is Severity.INFO
    world.path(volume).unlink()
    assert codes(world).count("volume-missing") == 1


def test_volumes_elsewhere_are_counted(make_world):
    world = make_world()
    volume = world.create()
    with world.store.writing() as transaction:
        for number in range(3):
            transaction.add_volume(replace(volume, id=f"{number}", name="", host="there@left#left"))
        transaction.add_volume(replace(volume, id="4", name="", host="here@gone#gone"))
        transaction.add_volume(replace(volume, id="5", name="", host="here@left#gone"))
    unknown, here, there = findings(world)
    assert (unknown.code, unknown.severity, unknown.what) == ("pool-unknown", "warning", "here@left#gone")
    assert (here.what, there.what) == ("here@gone", "there@left")
    assert here.severity is Severity.INFO
    assert there.explanation.startswith("3 volumes are recorded there.")


def test_many_volumes_take_few_calls(make_world):
    world = make_world(kind="path")
    model = world.create()
    objects = world.pool("left")
    with world.store.writing() as transaction:
        for number in range(1500):
            volume = transaction.add_volume(replace(model, id=f"00000000-0000-4000-8000-{number:012}", name=""))
            (objects / volume.backend_name).touch()
            os.truncate(objects / volume.backend_name, volume.size_bytes)
    (objects / f"volume-00000000-0000-4000-8000-{7:012}").unlink()
    world.fake("left").calls.clear()
    started = time.monotonic()
    report = doctor.examine(world.store, world.engine._backends, grace_seconds=0)
    assert time.monotonic() - started < 10
    assert (report.volumes, report.objects, report.backends) == (1501, 1500, 2)
    assert [found.code for found in report.findings] == ["volume-missing"]
    assert [call for call, _ in world.fake("left").calls] == ["get_volume_stats", "list_objects", "volume_exists"]


def test_filters(make_world):
    world = make_world()
    first, second = world.create(name="first"), world.create(name="second", host="here@right#right")
    for volume in (first, second):
        world.path(volume).unlink()
    assert len(findings(world)) == 2
    assert [found.what for found in findings(world, volume_id=first.id)] == [first.id]
    assert [found.what for found in findings(world, backend="right")] == [second.id]
    with pytest.raises(errors.BackendNotFound):
        findings(world, backend="other")
    with pytest.raises(errors.VolumeNotFound):
        findings(world, volume_id="other")
    assert first.host == SOURCE
