"""The fake driver: its faults, its garbage, and the memory that it gives back."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
import time
import unittest
from dataclasses import replace

import ddt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.drivers import Capability
from volmig.drivers._fake_faults import FakeFault, Fault, contract_methods
from volmig.drivers.fake import FakeDriver
from volmig.testing import patterns

from .support import CTXT, MIB, fake_driver, host_of, volume_of

CONNECTOR = {"host": "h"}


@pytest.fixture
def driver():
    driver = fake_driver()
    yield driver
    driver.close()


def made(driver, **fields):
    volume = volume_of(driver, **fields)
    driver.create_volume(volume)
    return volume


@ddt.ddt
class TestGrammar(unittest.TestCase):
    @ddt.data(
        "", "create_volume", "create_volume:", ":fail", "no_such:fail", "create_volume:explode", "create_volume@0:fail",
        "create_volume@x:fail", "create_volume:delay", "create_volume:delay=soon", "create_volume:delay=-1",
        "create_volume:delay=nan", "create_volume:nonsense=1", "create_volume:wrong_size",
        "create_volume:wrong_size=1.5",
        "delete_volume:wrong_size=1", "delete_volume:garbage", "write:lost", "write@5:short", "read@5:lost",
        "read@5:eio=1", "create_volume:fail=no-such-code", "__init__:fail", "address:fail",
    )  # fmt: skip
    def test_malformed_spec_is_refused(self, spec):
        with pytest.raises(errors.ConfigOptionInvalid) as caught:
            fake_driver(setup=False, fake_faults=[spec])
        assert caught.value.fields["option"] == "fake_faults"

    @ddt.data(
        "create_volume:fail", "create_volume@3:fail_after", "get_volume_stats:delay=0.5", "do_setup:hang",
        "delete_volume@2:hang=1", "create_volume:wrong_size=-512", "extend_volume:garbage", "write@0:flip",
        "read@99:short",
        "create_volume:fail=disk-full",
    )  # fmt: skip
    def test_sound_spec_is_kept(self, spec):
        assert Fault.parse(spec).spec == spec


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_fault_or_a_value_error(text):
    try:
        Fault.parse(text)
    except ValueError as exc:
        assert str(exc)  # noqa: PT017


def call_of(driver, method, volume):
    """Return a call of a method that works when there is no fault."""
    driver.create_volume(volume)
    other = volume_of(driver)
    driver.create_volume(other)
    driver.add_foreign("pool-a", "foreign", b"x" * MIB)
    host = host_of(driver, "pool-b")
    arguments = {
        "do_setup": (CTXT,),
        "check_for_setup_error": (),
        "get_volume_stats": (),
        "extend_volume": (volume, 2 * MIB),
        "delete_object": (volume, None),
        "initialize_connection": (volume, CONNECTOR),
        "terminate_connection": (volume, CONNECTOR),
        "migrate_volume": (CTXT, volume, host),
        "recover_migration": (CTXT, volume, host),
        "update_migrated_volume": (CTXT, volume_of(driver), other, "available"),
        "open_volume": (volume, "rb"),
        "manage_existing_get_size": (volume, {"source-name": "foreign"}),
        "manage_existing": (volume, {"source-name": "foreign"}),
        "list_objects": ("pool-a",),
        "create_snapshot": (volume, "0d4f5c1e-0000-4000-8000-00000000beef"),
        "delete_snapshot": (volume, "0d4f5c1e-0000-4000-8000-00000000beef"),
        "retype": (CTXT, volume, "fast"),
    }.get(method, (volume,))
    return lambda: getattr(driver, method)(*arguments)


OFFERED = sorted(name for name in contract_methods() if name in vars(FakeDriver))


@pytest.mark.parametrize("method", OFFERED)
def test_every_method_can_fail_and_answer_nonsense(driver, method):
    call = call_of(driver, method, volume_of(driver))
    driver.faults.add(f"{method}@1:fail")
    with pytest.raises(FakeFault):
        call()
    driver.faults.clear()
    driver.faults.add(f"{method}@1:nonsense")
    assert call() in NONSENSE
    assert method in {name for name, _ in driver.calls}


NONSENSE = (
    "nonsense",
    {"size_bytes": "nonsense"},
    (True, {"size_bytes": "nonsense"}),
    {"pools": [{"pool_name": 7}]},
)


def test_fail_has_no_effect_and_fail_after_has_all(driver):
    volume = volume_of(driver)
    driver.faults.add("create_volume@1:fail=disk-full")
    driver.faults.add("create_volume@2:fail_after")
    with pytest.raises(errors.DiskFull):
        driver.create_volume(volume)
    assert not driver.volume_exists(volume)
    with pytest.raises(FakeFault):
        driver.create_volume(volume)
    assert driver.volume_exists(volume)
    driver.create_volume(volume)  # the third call has no fault


def test_delay_and_hang(driver):
    driver.faults.add("volume_exists@1:delay=0.05")
    began = time.monotonic()
    driver.volume_exists(volume_of(driver))
    assert time.monotonic() - began >= 0.05
    driver.faults.clear()
    driver.faults.add("volume_exists:hang")
    done = threading.Event()
    thread = threading.Thread(target=lambda: (driver.volume_exists(volume_of_driver), done.set()))
    volume_of_driver = volume_of(driver)
    thread.start()
    assert not done.wait(0.05)
    driver.faults.release()
    thread.join(10)
    assert done.is_set()
    driver.faults.clear()
    driver.faults.add("volume_exists:hang=0.01")
    driver.volume_exists(volume_of(driver))


def test_wrong_size_and_garbage(driver):
    driver.faults.add("create_volume@1:wrong_size=-512")
    with pytest.raises(errors.VolumeSizeMismatch):
        driver.initialize_connection(made(driver), CONNECTOR)
    driver.faults.add("create_volume:garbage")
    assert Capability.ZEROED_ON_CREATE in driver.capabilities
    volume = made(driver)
    with driver.open_volume(volume, "rb") as handle, pytest.raises(patterns.PatternMismatch):
        patterns.check(handle, patterns.zeroes(MIB))


def test_honest_garbage(driver):
    honest = fake_driver(fake_zeroed=False)
    assert not {Capability.ZEROED_ON_CREATE, Capability.SPARSE} & honest.capabilities
    with honest.open_volume(made(honest), "rb") as handle:
        assert handle.read(4096) != bytes(4096)
    honest.close()


@pytest.mark.parametrize(("action", "offset"), [("lost", 4096), ("flip", 5000)])
def test_silent_faults_of_handles_damage_data(driver, action, offset):
    volume, pattern = made(driver), patterns.dense(MIB)
    driver.faults.add(f"write@{offset}:{action}")
    with driver.open_volume(volume, "r+b") as handle:
        for at in range(0, MIB, 4096):
            handle.seek(at)
            assert handle.write(pattern.read(at, 4096)) == 4096
    with driver.open_volume(volume, "rb") as handle, pytest.raises(patterns.PatternMismatch) as caught:
        patterns.check(handle, pattern)
    assert caught.value.offset == offset


@pytest.mark.parametrize(("action", "number"), [("eio", 5), ("enospc", 28)])
def test_loud_faults_of_handles(driver, action, number):
    volume = made(driver)
    driver.faults.add(f"write@5000:{action}")
    with driver.open_volume(volume, "r+b") as handle:
        assert handle.write(b"x" * 8192) == 5000
        with pytest.raises(OSError, match=os.strerror(number)):
            handle.write(b"x")


def test_faults_of_reading(driver):
    volume = made(driver)
    driver.faults.add("read@5000:short")
    with driver.open_volume(volume, "rb") as handle:
        assert len(handle.read(8192)) == 5000
        assert handle.read(8192) == b""
    driver.faults.clear()
    driver.faults.add("read@5000:eio")
    with driver.open_volume(volume, "rb") as handle:
        assert len(handle.read(8192)) == 5000
        with pytest.raises(OSError, match="Input/output"):
            handle.read(1)


def test_handle_never_grows_a_volume_and_has_no_descriptor(driver):
    volume = made(driver)
    with driver.open_volume(volume, "r+b") as handle:
        handle.seek(MIB - 1)
        assert handle.write(b"xx") == 1
        with pytest.raises(OSError, match="No space"):
            handle.write(b"x")
        with pytest.raises(OSError, match="fileno"):
            handle.fileno()


def test_another_process_opens_the_path(driver):
    volume = made(driver)
    path = driver.initialize_connection(volume, CONNECTOR)["data"]["device_path"]
    subprocess.run(
        [shutil.which("dd"), "if=/dev/zero", f"of={path}", "bs=1", "count=3", "seek=9", "conv=notrunc"],
        check=True,
        capture_output=True,
    )
    driver.initialize_connection(volume, CONNECTOR)


def test_calls_are_listed(driver):
    driver.calls.clear()
    volume = made(driver)
    driver.delete_volume(volume)
    assert driver.calls[-2:] == [("create_volume", volume.id), ("delete_volume", volume.id)]


def test_full_pool():
    driver = fake_driver(fake_capacity_bytes=MIB)
    volume = made(driver)
    with pytest.raises(errors.DiskFull):
        driver.create_volume(volume_of(driver, size_bytes=1))
    with pytest.raises(errors.DiskFull):
        driver.extend_volume(volume, MIB + 1)
    driver.close()


def test_down_and_read_only():
    driver = fake_driver(fake_down=True, fake_read_only=True)
    stats = driver.get_volume_stats()
    assert stats["down_reason"]
    assert stats["pools"][0]["read_only"] is True
    with pytest.raises(errors.BackendDown):
        driver.volume_exists(volume_of(driver))
    driver.down_reason = ""
    with pytest.raises(errors.DestinationReadOnly):
        driver.create_volume(volume_of(driver))
    driver.close()


def test_memory_and_descriptors_are_given_back():
    gc.collect()  # what other tests have dropped must not count
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    driver = fake_driver()
    for _ in range(5):
        made(driver)
    assert len(os.listdir("/proc/self/fd")) == before + 5  # noqa: PTH208
    driver.delete_volume(made(driver))
    assert len(os.listdir("/proc/self/fd")) == before + 5  # noqa: PTH208
    del driver
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_backends_of_one_directory_reach_each_other(tmp_path):
    one, other = (fake_driver(backend=name, fake_directory=str(tmp_path)) for name in ("one", "other"))
    volume = made(one)
    assert one.migrate_volume(CTXT, volume, host_of(other))[0] is True
    assert other.volume_exists(replace(volume, host=other.address("pool-a")))
    assert one.recover_migration(CTXT, volume, host_of(other))[0] is True
    apart = fake_driver(backend="apart", fake_directory=str(tmp_path / "x"))
    assert one.migrate_volume(CTXT, made(one), host_of(apart)) == (False, None)
