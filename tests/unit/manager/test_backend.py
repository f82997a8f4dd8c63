"""Whatever a driver answers, only sound answers get past the backend."""

from __future__ import annotations

import errno
import io
import threading
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ddt
import pytest

from tests.unit.manager.drivers import GIB, a_volume, small_backend
from volmig import errors
from volmig.drivers.base import MigrationHost, StoredObject
from volmig.manager.backend import Backend
from volmig.manager.calls import MOST_HANGING
from volmig.model import RequestContext

HOST: MigrationHost = {"host": "here@small#q", "capabilities": {}}
CONTEXT = RequestContext()
VOLUME = a_volume()

CALLS: dict[str, Callable[[Backend], Any]] = {
    "get_volume_stats": lambda backend: backend.pools(),
    "create_volume": lambda backend: backend.create_volume(VOLUME),
    "delete_volume": lambda backend: backend.delete_volume(VOLUME),
    "extend_volume": lambda backend: backend.extend_volume(VOLUME, 2 * GIB),
    "volume_exists": lambda backend: backend.volume_exists(VOLUME),
    "initialize_connection": lambda backend: backend.initialize_connection(VOLUME),
    "terminate_connection": lambda backend: backend.terminate_connection(VOLUME),
    "open_volume": lambda backend: backend.open_volume(VOLUME, "rb"),
    "migrate_volume": lambda backend: backend.migrate_volume(CONTEXT, VOLUME, HOST),
    "recover_migration": lambda backend: backend.recover_migration(CONTEXT, VOLUME, HOST),
    "update_migrated_volume": lambda backend: backend.update_migrated_volume(CONTEXT, VOLUME, VOLUME, "available"),
    "manage_existing_get_size": lambda backend: backend.manage_existing_get_size(VOLUME, {"source-name": "x"}),
    "manage_existing": lambda backend: backend.manage_existing(VOLUME, {"source-name": "x"}),
    "unmanage": lambda backend: backend.unmanage(VOLUME),
    "identify_object": lambda backend: backend.identify_object(VOLUME),
    "list_objects": lambda backend: backend.list_objects("p"),
    "create_snapshot": lambda backend: backend.create_snapshot(VOLUME, "s"),
    "delete_snapshot": lambda backend: backend.delete_snapshot(VOLUME, "s"),
    "retype": lambda backend: backend.retype(CONTEXT, VOLUME, "fast"),
}

OBJECT = StoredObject(name="volume-1", size_bytes=1, backend_id="1")
NO_UPDATES = (
    "nonsense",
    7,
    True,
    [],
    {"size_bytes": 7},
    {"host": "here@other#p"},
    {"status": "available"},
    {"id": "another"},
    {"_name_id": 7},
    {"provider_location": b"bytes"},
    {"provider_id": {"a": 1}},
    {"metadata": None},
    {"metadata": "a=b"},
    {"metadata": {"a": 1}},
    {"metadata": {1: "a"}},
    {7: "x"},
    {None: None, "size_bytes": 1},
)
NONSENSE: dict[str, tuple[Any, ...]] = {
    "get_volume_stats": (None, [], "up", {}, {"pools": []}, {"pools": [{"pool_name": 7}]}),
    "create_volume": NO_UPDATES,
    "delete_volume": (True, {}, "done"),
    "extend_volume": (False, {"size_bytes": 1}, 0),
    "volume_exists": (None, 1, 0, "yes", "", [], {}),
    "initialize_connection": (
        None,
        "/dev/sdb",
        {},
        {"driver_volume_type": "local"},
        {"data": {}},
        {"driver_volume_type": None, "data": {}},
        {"driver_volume_type": "local", "data": None},
        {"driver_volume_type": "local", "data": "/dev/sdb"},
        ("local", {}),
    ),
    "terminate_connection": (True, {}),
    "open_volume": (None, "/dev/sdb", 7, object(), {}),
    "migrate_volume": (
        None,
        True,
        (),
        (True,),
        (True, {}, {}),
        [True, None],
        ("yes", None),
        (1, None),
        (None, None),
        (False, {}),
        (False, {"provider_id": "x"}),
        (True, "x"),
        (True, {"host": "here@small#q"}),
    ),
    "recover_migration": (None, False, (1, None), (False, {}), (True, {"size_bytes": 1})),
    "update_migrated_volume": (None, *NO_UPDATES),
    "manage_existing_get_size": (None, 0, -1, True, 1.0, "7", GIB + 0.5),
    "manage_existing": NO_UPDATES,
    "unmanage": (True, {}, "done"),
    "identify_object": (7, "", b"x", "nul\0", "\udc80", True, []),
    "list_objects": (
        None,
        True,
        "volume-1",
        b"volume-1",
        {"volume-1": 1},
        {OBJECT},
        ["volume-1"],
        [("volume-1", 1)],
        [{"name": "volume-1", "size_bytes": 1}],
        [OBJECT, None],
        [OBJECT, OBJECT],
        [OBJECT, replace(OBJECT, backend_id=None)],
        [replace(OBJECT, name="")],
        [replace(OBJECT, name="nul\0")],
        [replace(OBJECT, name="\udc80")],
        [replace(OBJECT, name="n" * 5000)],
        [replace(OBJECT, name=7)],  # type: ignore[arg-type]
        [replace(OBJECT, size_bytes=-1)],
        [replace(OBJECT, size_bytes=True)],
        [replace(OBJECT, size_bytes=1.0)],  # type: ignore[arg-type]
        [replace(OBJECT, size_bytes=None)],  # type: ignore[arg-type]
        [replace(OBJECT, backend_id="")],
        [replace(OBJECT, backend_id=7)],  # type: ignore[arg-type]
        [replace(OBJECT, backend_id="\udc80")],
    ),
    "create_snapshot": (True, {}, "done"),
    "delete_snapshot": (False, {}, "done"),
    "retype": (None, True, (1, None), (False, {}), (True, {"size_bytes": 1}), [True, None]),
}
TABLE = [(method, answer) for method, answers in NONSENSE.items() for answer in answers]


@ddt.ddt
class Nonsense(unittest.TestCase):
    @ddt.data(*TABLE)
    @ddt.unpack
    def test_is_the_drivers_fault_and_told_so(self, method: str, answer: Any) -> None:
        backend, driver = small_backend()
        driver.answers[method] = lambda: answer
        with pytest.raises(errors.DriverContractBroken) as caught:
            CALLS[method](backend)
        error = caught.value
        assert error.fields["driver"] == "tests.small"
        assert error.fields["backend"] == "small"
        assert error.fields["method"] == method

    @ddt.data(*CALLS)
    def test_an_exception_names_backend_and_method(self, method: str) -> None:
        backend, driver = small_backend()
        cause = RuntimeError("the array says no")

        def fail() -> None:
            raise cause

        driver.answers[method] = fail
        with pytest.raises(errors.DriverFailed) as caught:
            CALLS[method](backend)
        assert caught.value.__cause__ is cause
        assert (caught.value.fields["backend"], caught.value.fields["method"]) == ("small", method)
        assert "the array says no" in caught.value.message

    @ddt.data(*CALLS)
    def test_a_call_that_hangs_is_given_up(self, method: str) -> None:
        backend, driver = small_backend(timeout_seconds=0.05)
        backend.require_set_up()
        release = threading.Event()
        driver.answers[method] = lambda: release.wait(30) and None
        try:
            with pytest.raises(errors.DriverTimeout) as caught:
                CALLS[method](backend)
        finally:
            release.set()
        assert caught.value.fields["method"] == method

    @ddt.data(*(method for method in CALLS if method not in ("update_migrated_volume", "recover_migration")))
    def test_what_must_be_there_cannot_be_left_out(self, method: str) -> None:
        backend, driver = small_backend()

        def fail() -> None:
            raise NotImplementedError

        driver.answers[method] = fail
        with pytest.raises(errors.DriverFailed, match="not implemented"):
            CALLS[method](backend)


def _not_implemented() -> None:
    raise NotImplementedError


def test_without_update_migrated_volume_the_copy_keeps_its_id() -> None:
    backend, driver = small_backend()
    driver.answers["update_migrated_volume"] = _not_implemented
    copy = a_volume(id="copy")
    assert backend.update_migrated_volume(CONTEXT, VOLUME, copy, "available") == {"_name_id": "copy"}
    driver.answers["recover_migration"] = _not_implemented
    with pytest.raises(NotImplementedError):
        backend.recover_migration(CONTEXT, VOLUME, HOST)


@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        ("create_volume", None, {}),
        ("create_volume", {}, {}),
        ("create_volume", {"provider_location": "there"}, {"provider_location": "there"}),
        ("create_volume", {"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        (
            "update_migrated_volume",
            {"_name_id": None, "provider_location": None},
            {"_name_id": None, "provider_location": None},
        ),
        ("migrate_volume", (False, None), (False, {})),
        ("migrate_volume", (True, None), (True, {})),
        ("migrate_volume", (True, {"provider_id": "x"}), (True, {"provider_id": "x"})),
        ("volume_exists", False, False),
        ("manage_existing_get_size", 1, 1),
        ("identify_object", None, None),
        ("identify_object", "inode-7", "inode-7"),
        ("list_objects", [], ()),
        (
            "list_objects",
            (OBJECT, replace(OBJECT, name="x", size_bytes=0, backend_id=None)),
            (OBJECT, replace(OBJECT, name="x", size_bytes=0, backend_id=None)),
        ),
        ("retype", (False, None), (False, {})),
        ("retype", (True, {"provider_id": "x"}), (True, {"provider_id": "x"})),
    ],
)
def test_sound_answers_pass(method: str, answer: Any, expected: Any) -> None:
    backend, driver = small_backend()
    driver.answers[method] = lambda: answer
    assert CALLS[method](backend) == expected


def test_an_answer_is_a_copy_of_what_the_driver_keeps() -> None:
    backend, driver = small_backend()
    kept = {"provider_id": "x"}
    driver.answers["create_volume"] = lambda: kept
    update: Any = backend.create_volume(VOLUME)
    update["provider_id"] = "changed"
    assert kept == {"provider_id": "x"}


def test_a_handle_that_comes_too_late_is_closed() -> None:
    backend, driver = small_backend(timeout_seconds=0.05)
    release = threading.Event()
    handle = io.BytesIO()

    def late() -> io.BytesIO:
        release.wait(30)
        return handle

    driver.answers["open_volume"] = late
    with pytest.raises(errors.DriverTimeout):
        backend.open_volume(VOLUME, "rb")
    release.set()
    _until(lambda: handle.closed)


def test_a_connection_that_comes_too_late_is_ended() -> None:
    backend, driver = small_backend(timeout_seconds=0.05)
    release = threading.Event()
    driver.answers["initialize_connection"] = lambda: release.wait(30) and None
    with pytest.raises(errors.DriverTimeout):
        backend.initialize_connection(VOLUME)
    assert "terminate_connection" not in driver.calls
    release.set()
    _until(lambda: "terminate_connection" in driver.calls)


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.005)
    pytest.fail("it did not come about")


# --- set-up and state -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["do_setup", "check_for_setup_error"])
def test_a_failed_setup_is_tried_again_and_then_done_once(method: str) -> None:
    backend, driver = small_backend()

    def fail() -> None:
        raise errors.BackendSetupFailed(backend="small", reason="no cable")

    driver.answers[method] = fail
    for _ in range(2):
        info = backend.info()
        assert not info.up
        assert "no cable" in info.down_reason
        assert info.pools == ()
        with pytest.raises(errors.BackendDown, match="no cable"):
            backend.pools()
    driver.answers.clear()
    assert backend.info().up
    before = driver.calls.count("do_setup")
    backend.pools()
    assert driver.calls.count("do_setup") == before


@pytest.mark.parametrize("method", list(CALLS))
def test_the_driver_is_set_up_before_any_other_call(method: str) -> None:
    """ "Called once, before any other call", the contract says."""
    backend, driver = small_backend()
    driver.answers["open_volume"] = io.BytesIO
    CALLS[method](backend)
    assert driver.calls[:3] == ["do_setup", "check_for_setup_error", method]


def test_many_threads_set_it_up_once() -> None:
    backend, driver = small_backend()
    threads = [threading.Thread(target=backend.info) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert driver.calls.count("do_setup") == 1


def test_info_of_a_backend_that_works() -> None:
    backend, _ = small_backend()
    info = backend.info()
    assert (info.name, info.address, info.driver, info.up, info.down_reason) == (
        "small",
        "here@small",
        "tests.small",
        True,
        "",
    )
    assert [pool.address for pool in info.pools] == ["here@small#p", "here@small#q"]
    assert info.capabilities == tuple(sorted(info.capabilities))


@pytest.mark.parametrize(
    ("stats", "reason"),
    [
        ({"down_reason": "no power", "pools": []}, "no power"),
        ("nonsense", "contract"),
        ({"pools": "nonsense"}, "contract"),
    ],
)
def test_info_of_one_that_does_not_says_why(stats: Any, reason: str) -> None:
    backend, driver = small_backend()
    driver.answers["get_volume_stats"] = lambda: stats
    info = backend.info()
    assert not info.up
    assert reason in info.down_reason


def test_a_destination_is_told_with_its_pools_and_its_backends_figures() -> None:
    backend, _ = small_backend()
    host = backend.as_destination("q")
    assert host["host"] == "here@small#q"
    assert host["capabilities"]["location_info"] == "at q"
    assert host["capabilities"]["vendor_name"] == "tests"
    assert "pools" not in host["capabilities"]
    with pytest.raises(errors.PoolNotFound, match="p, q"):
        backend.as_destination("r")


# --- storage that is busy, and calls that hang --------------------------------------------------------


def _busy(times: int, error: Exception | None = None) -> Callable[[], None]:
    left = [times]

    def answer() -> None:
        if left[0]:
            left[0] -= 1
            raise error or errors.StorageBusy(backend="small", reason="rebuilding")

    return answer


@pytest.mark.parametrize("error", [None, BlockingIOError(errno.EAGAIN, "later")])
@pytest.mark.parametrize("method", ["create_volume", "delete_volume", "extend_volume", "create_snapshot", "do_setup"])
def test_what_fails_for_the_moment_is_repeated(method: str, error: Exception | None) -> None:
    backend, driver = small_backend(driver_retries=3)
    driver.answers[method] = _busy(3, error)
    CALLS.get(method, CALLS["delete_volume"])(backend)
    assert driver.calls.count(method) == 4


@pytest.mark.parametrize(
    ("method", "attempts"), [("migrate_volume", 3), ("open_volume", 1), ("manage_existing", 1), ("unmanage", 1)]
)
def test_storage_that_stays_busy_is_told(method: str, attempts: int) -> None:
    backend, driver = small_backend(driver_retries=2)
    driver.answers[method] = _busy(100)
    with pytest.raises(errors.StorageBusy):
        CALLS[method](backend)
    assert driver.calls.count(method) == attempts


def test_a_move_of_unknown_outcome_is_not_repeated() -> None:
    backend, driver = small_backend(driver_retries=2)
    driver.answers["migrate_volume"] = _busy(100, OSError(errno.ETIMEDOUT, "no answer"))
    with pytest.raises(errors.DriverFailed):
        CALLS["migrate_volume"](backend)
    assert driver.calls.count("migrate_volume") == 1


def test_a_call_that_hangs_is_not_repeated_beside_itself() -> None:
    backend, driver = small_backend(driver_call_timeouts={"delete_volume": "0.1"}, driver_retries=5)
    release = threading.Event()
    driver.answers["delete_volume"] = lambda: release.wait(30) and None
    with pytest.raises(errors.DriverTimeout):
        backend.delete_volume(VOLUME)
    assert driver.calls.count("delete_volume") == 1
    assert backend.hanging_calls() == {"delete_volume": 1}
    assert backend.info().calls_hanging == 1
    release.set()
    _until(lambda: backend.info().calls_hanging == 0)


def test_each_method_has_its_time() -> None:
    backend, driver = small_backend(timeout_seconds=20.0, driver_call_timeouts={"volume_exists": "0.1"})
    backend.require_set_up()
    release = threading.Event()
    driver.answers["volume_exists"] = lambda: release.wait(30)
    with pytest.raises(errors.DriverTimeout, match=r"0\.1 seconds"):
        backend.volume_exists(VOLUME)
    release.set()


def test_a_backend_whose_calls_all_hang_is_not_called_any_more() -> None:
    backend, driver = small_backend(driver_call_timeouts={"volume_exists": "0.2"})
    backend.require_set_up()
    release = threading.Event()
    driver.answers["volume_exists"] = lambda: release.wait(30)

    def hang(_: int) -> BaseException | None:
        try:
            backend.volume_exists(VOLUME)
        except errors.VolmigError as error:
            return error
        return None

    with ThreadPoolExecutor(max_workers=MOST_HANGING) as workers:
        told = list(workers.map(hang, range(MOST_HANGING)))
    assert {type(error) for error in told} == {errors.DriverTimeout}
    with pytest.raises(errors.BackendDown, match=f"{MOST_HANGING} of volume_exists"):
        backend.volume_exists(VOLUME)
    assert not backend.info().up
    assert driver.calls.count("volume_exists") == MOST_HANGING
    release.set()
    _until(lambda: backend.info().up)
    assert backend.volume_exists(VOLUME)
