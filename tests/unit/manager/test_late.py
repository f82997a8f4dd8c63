"""A call that ends after its time is undone, unless what it made is by then in somebody else's hands."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.waiting import until
from volmig import errors
from volmig.drivers.fake import FakeDriver
from volmig.manager.backend import Backend
from volmig.manager.claims import Claim, Claims, Thing
from volmig.manager.policies import CallTimes
from volmig.model import RequestContext, Volume, VolumeStatus
from volmig.testing import patterns

SIZE = 64 * 1024
THING = Thing(kind="object", host="here@one#p", name="v")
OTHER = replace(THING, name="w")
PATTERN = patterns.dense(SIZE)


# --- the rule ---------------------------------------------------------------------------------------


class Late:
    """A claim whose call was given up; :meth:`end` lets the call end in a thread of its own."""

    def __init__(self, claims: Claims, thing: Thing = THING) -> None:
        self.claims = claims
        self.undone = threading.Event()
        self.may_undo = threading.Event()
        self.may_undo.set()
        self.claim: Claim
        with pytest.raises(errors.DriverTimeout), claims.making(thing, wait_seconds=0) as self.claim:
            raise errors.DriverTimeout(backend="one", method="create_volume", seconds="1")

    def undo(self) -> None:
        self.undone.set()
        assert self.may_undo.wait(10)

    def end(self, workers: ThreadPoolExecutor) -> Future[bool]:
        return workers.submit(self.claims.take_back, self.claim, self.undo)


@pytest.fixture
def claims() -> Claims:
    return Claims("one")


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        yield pool


def _waiting(claims: Claims) -> int:
    return len(claims._changed._waiters)  # type: ignore[attr-defined]


def test_what_nobody_has_is_taken_back(claims: Claims, workers: ThreadPoolExecutor) -> None:
    late = Late(claims)
    with claims.making(OTHER, wait_seconds=0):
        pass
    claims.use(OTHER, wait_seconds=0)
    assert late.end(workers).result(10) is True
    assert late.undone.is_set()


def test_what_a_later_call_has_made_stays(claims: Claims, workers: ThreadPoolExecutor) -> None:
    late = Late(claims)
    with claims.making(THING, wait_seconds=0):
        pass
    assert late.end(workers).result(10) is False
    assert not late.undone.is_set()


def test_what_an_earlier_call_has_made_meanwhile_stays(claims: Claims, workers: ThreadPoolExecutor) -> None:
    with claims.making(THING, wait_seconds=0):
        late = Late(claims)
    assert late.end(workers).result(10) is False


def test_what_is_used_stays(claims: Claims, workers: ThreadPoolExecutor) -> None:
    late = Late(claims)
    claims.use(THING, wait_seconds=0)
    assert late.end(workers).result(10) is False


@pytest.mark.parametrize("accepted", [True, False])
def test_it_waits_for_a_call_under_way(claims: Claims, workers: ThreadPoolExecutor, accepted: bool) -> None:
    late = Late(claims)
    outcome = contextlib.nullcontext() if accepted else pytest.raises(ZeroDivisionError)
    with outcome, claims.making(THING, wait_seconds=0):
        ending = late.end(workers)
        until(lambda: _waiting(claims) == 1)
        assert not late.undone.is_set()
        assert 1 / int(accepted)
    assert ending.result(10) is not accepted
    assert late.undone.is_set() is not accepted


def test_two_late_calls_are_both_taken_back(claims: Claims, workers: ThreadPoolExecutor) -> None:
    first, second = Late(claims), Late(claims)
    assert [first.end(workers).result(10), second.end(workers).result(10)] == [True, True]


def test_a_new_call_waits_until_the_late_one_is_taken_back(claims: Claims, workers: ThreadPoolExecutor) -> None:
    late = Late(claims)
    late.may_undo.clear()
    ending = late.end(workers)
    assert late.undone.wait(10)
    with pytest.raises(errors.StorageBusy, match="still being removed"), claims.making(THING, wait_seconds=0.01):
        pytest.fail("it began while the object was being removed")
    with pytest.raises(errors.StorageBusy):
        claims.use(THING, wait_seconds=0.01)
    claims.use(OTHER, wait_seconds=0)
    began = threading.Event()

    def make() -> None:
        with claims.making(THING, wait_seconds=10):
            began.set()

    making = workers.submit(make)
    until(lambda: _waiting(claims) == 1)
    assert not began.is_set()
    late.may_undo.set()
    making.result(10)
    assert ending.result(10) is True


def test_nothing_is_kept_of_calls_that_have_ended(claims: Claims, workers: ThreadPoolExecutor) -> None:
    late = Late(claims)
    late.end(workers).result(10)
    with claims.making(OTHER, wait_seconds=0):
        pass
    del late
    gc.collect()
    assert list(claims._open) == []


# --- with a driver that holds real bytes --------------------------------------------------------------


class GatedDriver(FakeDriver):
    """Waits in its calls as it is told: ``gates`` has the events to wait for, by method, number of the call, place."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gates: dict[tuple[str, int, str], threading.Event] = {}
        self.before_delete: Callable[[], object] = lambda: None
        self._counts: dict[str, int] = {}
        self._counting = threading.Lock()

    def _gated(self, method: str, body: Callable[[], Any]) -> Any:
        with self._counting:
            number = self._counts[method] = self._counts.get(method, 0) + 1
        self._pass(method, number, "before")
        answer = body()
        self._pass(method, number, "after")
        return answer

    def _pass(self, method: str, number: int, place: str) -> None:
        gate = self.gates.get((method, number, place))
        if gate is not None and not gate.wait(30):
            raise RuntimeError("nobody opened the gate")

    def gate(self, method: str, number: int, place: str) -> threading.Event:
        return self.gates.setdefault((method, number, place), threading.Event())

    def create_volume(self, volume: Volume) -> Any:
        return self._gated("create_volume", lambda: FakeDriver.create_volume(self, volume))

    def initialize_connection(self, volume: Volume, connector: Any) -> Any:
        return self._gated("initialize_connection", lambda: FakeDriver.initialize_connection(self, volume, connector))

    def delete_object(self, volume: Volume, identity: str | None) -> None:
        self.before_delete()
        self._gated("delete_object", lambda: FakeDriver.delete_object(self, volume, identity))


class Site:
    """A backend with a gated driver, and one volume for it to make."""

    def __init__(self) -> None:
        options = {option.dest: option.default for option in FakeDriver.get_driver_options()}
        options |= {"driver_timeout_seconds": 20.0, "driver_migrate_timeout_seconds": 20.0, "fake_pools": ["p", "q"]}
        self.driver = GatedDriver(host="here", backend="one", options=options)
        self.backend = Backend(self.driver, name="one", driver_name="gated")
        self.backend.require_set_up()
        self.volume = self.record("4c1c1c6e-0000-4000-8000-000000000001")

    def record(self, volume_id: str) -> Volume:
        return Volume(id=volume_id, name="v", size_bytes=SIZE, host="here@one#p", status=VolumeStatus.AVAILABLE)

    @contextlib.contextmanager
    def little_time(self) -> Iterator[None]:
        """Have calls be given up soon, within the context only: a busy machine must not make others late."""
        given = self.backend._times
        little = {"create_volume": "0.3", "initialize_connection": "0.3"}
        self.backend._times = CallTimes.from_options(self.driver.options | {"driver_call_timeouts": little}, group="x")
        yield
        self.backend._times = given

    def give_up(self, call: Callable[[], object]) -> None:
        with self.little_time(), pytest.raises(errors.DriverTimeout):
            call()

    def create_late(self, place: str = "before") -> threading.Event:
        """Have the first creation be given up, and return what lets it end."""
        gate = self.driver.gate("create_volume", 1, place)
        self.give_up(lambda: self.backend.create_volume(self.volume))
        return gate

    def fill(self, volume: Volume | None = None) -> None:
        with self.driver.open_volume(volume or self.volume, "r+b") as handle:
            patterns.fill(handle, PATTERN)

    def assert_whole(self) -> None:
        with self.driver.open_volume(self.volume, "rb") as handle:
            patterns.check(handle, PATTERN)

    def exists(self) -> bool:
        return self.driver.volume_exists(self.volume)

    def rest(self) -> None:
        """Wait until no call runs that was given up."""
        until(lambda: self.backend.hanging_calls() == {})


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    for gate in made.driver.gates.values():
        gate.set()
    made.rest()
    made.driver.close()


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_object_that_is_made_too_late_is_removed(site: Site, place: str) -> None:
    gate = site.create_late(place)
    gate.set()
    site.rest()
    assert not site.exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_object_that_a_repetition_was_given_is_not_removed(site: Site, place: str) -> None:
    """The late call succeeds, since the object is there already; undoing it would delete a volume in use."""
    gate = site.create_late(place)
    site.backend.create_volume(site.volume)
    site.fill()
    gate.set()
    site.rest()
    site.assert_whole()


@pytest.mark.parametrize("fails", [False, True])
def test_a_late_call_that_ends_during_a_repetition_waits_for_its_outcome(site: Site, fails: bool) -> None:
    gate = site.create_late("after")
    again = site.driver.gate("create_volume", 2, "after")
    if fails:
        site.driver.faults.add("create_volume:fail_after")
    with ThreadPoolExecutor(max_workers=1) as workers:
        repetition = workers.submit(site.backend.create_volume, site.volume)
        until(lambda: len([call for call in site.driver.calls if call[0] == "create_volume"]) == 2)
        gate.set()
        if not fails:
            until(lambda: _waiting(site.backend._claims) == 1)
            assert site.exists(), "it was removed while another call was about to be given it"
        again.set()
        assert (repetition.exception(10) is not None) is fails
    site.rest()
    assert site.exists() is not fails


def test_a_repetition_waits_until_the_late_object_is_gone(site: Site) -> None:
    gate = site.create_late("after")
    removing = threading.Event()
    site.driver.before_delete = removing.set
    may_delete = site.driver.gate("delete_object", 1, "before")
    gate.set()
    assert removing.wait(10)
    with site.little_time(), pytest.raises(errors.StorageBusy, match="still being removed"):
        site.backend.create_volume(site.volume)
    with ThreadPoolExecutor(max_workers=1) as workers:
        repetition = workers.submit(site.backend.create_volume, site.volume)
        until(lambda: _waiting(site.backend._claims) == 1)
        may_delete.set()
        repetition.result(10)
    site.fill()
    site.rest()
    site.assert_whole()


def test_two_late_creations_leave_nothing(site: Site) -> None:
    first = site.create_late()
    second = site.driver.gate("create_volume", 2, "before")
    site.give_up(lambda: site.backend.create_volume(site.volume))
    second.set()
    until(lambda: site.backend.hanging_calls() == {"create_volume": 1})
    first.set()
    site.rest()
    assert not site.exists()


def test_an_object_that_took_the_name_meanwhile_is_told_apart(site: Site) -> None:
    """Another process removes the late object and makes one of its own, before the undoing comes to it."""
    gate = site.create_late("after")

    def exchange() -> None:
        site.driver.before_delete = lambda: None
        site.driver.delete_volume(site.volume)
        FakeDriver.create_volume(site.driver, site.volume)
        site.fill()

    site.driver.before_delete = exchange
    gate.set()
    site.rest()
    site.assert_whole()


def test_a_volume_that_was_moved_to_the_name_is_not_removed(site: Site) -> None:
    gate = site.create_late()
    copy = site.record("4c1c1c6e-0000-4000-8000-000000000002")
    site.backend.create_volume(copy)
    site.fill(copy)
    elsewhere = replace(site.volume, host="here@two#p")
    update = site.backend.update_migrated_volume(RequestContext(), elsewhere, copy, "available")
    assert update["_name_id"] is None
    gate.set()
    site.rest()
    site.assert_whole()


def test_an_object_that_is_in_use_is_not_removed(site: Site) -> None:
    gate = site.create_late()
    FakeDriver.create_volume(site.driver, site.volume)
    site.backend.open_volume(site.volume, "rb").close()
    site.fill()
    gate.set()
    site.rest()
    site.assert_whole()


def test_removing_what_came_too_late_is_repeated_while_the_storage_is_busy(site: Site) -> None:
    options = site.driver.options | {"driver_retries": 2}
    site.driver.options = options
    site.backend = Backend(site.driver, name="one", driver_name="gated")
    site.backend.require_set_up()
    gate = site.create_late("after")
    site.driver.faults.add("delete_object@1:fail=storage-busy")
    site.driver.faults.add("delete_object@2:fail=storage-busy")
    gate.set()
    site.rest()
    assert not site.exists()


def test_a_connection_that_comes_too_late_is_ended_unless_another_was_made(site: Site) -> None:
    site.backend.create_volume(site.volume)
    first = site.driver.gate("initialize_connection", 1, "before")
    site.give_up(lambda: site.backend.initialize_connection(site.volume))
    site.backend.initialize_connection(site.volume)
    first.set()
    site.rest()
    assert ("terminate_connection", site.volume.id) not in site.driver.calls
    third = site.driver.gate("initialize_connection", 3, "before")
    site.give_up(lambda: site.backend.initialize_connection(site.volume))
    third.set()
    site.rest()
    assert ("terminate_connection", site.volume.id) in site.driver.calls
