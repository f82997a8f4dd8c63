"""A call that ends after its time: a connection is ended unless somebody else has it, an object is handed over."""

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
from volmig.manager.claims import Claim, Claims, Connection
from volmig.manager.policies import CallTimes
from volmig.model import Volume, VolumeStatus

SIZE = 64 * 1024
CONNECTION = Connection(host="here@one#p", name="v")
OTHER = replace(CONNECTION, name="w")


# --- the rule ---------------------------------------------------------------------------------------


class Late:
    """A claim whose call was given up; :meth:`end` lets the call end in a thread of its own."""

    def __init__(self, claims: Claims, connection: Connection = CONNECTION) -> None:
        self.claims = claims
        self.undone = threading.Event()
        self.may_undo = threading.Event()
        self.may_undo.set()
        self.claim: Claim
        with pytest.raises(errors.DriverTimeout), claims.making(connection, wait_seconds=0) as self.claim:
            raise errors.DriverTimeout(backend="one", method="initialize_connection", seconds="1")

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
    assert late.end(workers).result(10) is True
    assert late.undone.is_set()


def test_what_a_later_call_has_made_stays(claims: Claims, workers: ThreadPoolExecutor) -> None:
    late = Late(claims)
    with claims.making(CONNECTION, wait_seconds=0):
        pass
    assert late.end(workers).result(10) is False
    assert not late.undone.is_set()


def test_what_an_earlier_call_has_made_meanwhile_stays(claims: Claims, workers: ThreadPoolExecutor) -> None:
    with claims.making(CONNECTION, wait_seconds=0):
        late = Late(claims)
    assert late.end(workers).result(10) is False


@pytest.mark.parametrize("accepted", [True, False])
def test_it_waits_for_a_call_under_way(claims: Claims, workers: ThreadPoolExecutor, accepted: bool) -> None:
    late = Late(claims)
    outcome = contextlib.nullcontext() if accepted else pytest.raises(ZeroDivisionError)
    with outcome, claims.making(CONNECTION, wait_seconds=0):
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
    with pytest.raises(errors.StorageBusy, match="is being ended"), claims.making(CONNECTION, wait_seconds=0.01):
        pytest.fail("it began while the late one was being ended")
    with claims.making(OTHER, wait_seconds=0):
        pass
    began = threading.Event()

    def make() -> None:
        with claims.making(CONNECTION, wait_seconds=10):
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

    def terminate_connection(self, volume: Volume, connector: Any) -> None:
        self._gated("terminate_connection", lambda: FakeDriver.terminate_connection(self, volume, connector))


Made = tuple[Volume, str | None]


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

    def create_late(self, place: str = "before") -> tuple[threading.Event, list[Made]]:
        """Have the first creation be given up; return what lets it end, and the list of what it hands over then."""
        gate, handed = self.driver.gate("create_volume", 1, place), list[Made]()
        self.give_up(
            lambda: self.backend.create_volume(self.volume, when_late=lambda made, found: handed.append((made, found)))
        )
        return gate, handed

    def connect_late(self, number: int = 1, place: str = "before") -> threading.Event:
        """Have a connection be given up, and return what lets it end."""
        gate = self.driver.gate("initialize_connection", number, place)
        self.give_up(lambda: self.backend.initialize_connection(self.volume))
        return gate

    def was_ended(self) -> bool:
        return ("terminate_connection", self.volume.id) in self.driver.calls

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


# --- objects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_object_that_is_made_too_late_is_handed_over(site: Site, place: str) -> None:
    """Nothing is deleted by the call: whatever it has found may be in use."""
    gate, handed = site.create_late(place)
    assert handed == []
    gate.set()
    site.rest()
    assert site.exists()
    assert handed == [(site.volume, site.driver.identify_object(site.volume))]
    assert not [method for method, _ in site.driver.calls if method.startswith("delete")]


def test_an_object_that_nobody_asks_for_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    gate = site.driver.gate("create_volume", 1, "before")
    site.give_up(lambda: site.backend.create_volume(site.volume))
    gate.set()
    site.rest()
    assert site.volume.id in caplog.text
    assert site.exists()


def test_what_its_driver_calls_it_is_handed_over_and_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Volume] = []

    def create(volume: Volume) -> Any:
        site.driver._gated("create_volume", lambda: None)
        return {"provider_id": "lun-7", "provider_location": "portal", "_name_id": "other"}

    monkeypatch.setattr(site.driver, "create_volume", create)
    monkeypatch.setattr(site.driver, "identify_object", lambda volume: asked.append(volume) or "serial 5")
    gate, handed = site.create_late()
    gate.set()
    site.rest()
    made = replace(site.volume, provider_id="lun-7", provider_location="portal", name_id="other")
    assert handed == [(made, "serial 5")]
    assert asked == [made]


def test_an_object_that_is_gone_again_is_not_handed_over(site: Site) -> None:
    gate, handed = site.create_late("after")
    site.driver.delete_volume(site.volume)
    gate.set()
    site.rest()
    assert handed == []


def test_an_object_that_cannot_be_identified_is_handed_over_all_the_same(site: Site) -> None:
    gate, handed = site.create_late()
    site.driver.faults.add("identify_object:fail")
    gate.set()
    site.rest()
    assert handed == [(site.volume, None)]


def test_asking_for_its_identity_is_repeated_while_the_storage_is_busy(site: Site) -> None:
    site.driver.options = site.driver.options | {"driver_retries": 1}
    site.backend = Backend(site.driver, name="one", driver_name="gated")
    gate, handed = site.create_late("after")
    site.driver.faults.add("identify_object@1:fail=storage-busy")
    gate.set()
    site.rest()
    assert [identity for _, identity in handed] != [None]


def test_an_answer_that_breaks_the_contract_is_of_an_object_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = site.driver.create_volume
    monkeypatch.setattr(site.driver, "create_volume", lambda volume: real(volume) or 5)
    gate, handed = site.create_late()
    gate.set()
    site.rest()
    assert [made for made, _ in handed] == [site.volume]


# --- connections ------------------------------------------------------------------------------------


def test_a_connection_that_comes_too_late_is_ended_unless_another_was_made(site: Site) -> None:
    site.backend.create_volume(site.volume)
    first = site.connect_late()
    site.backend.initialize_connection(site.volume)
    first.set()
    site.rest()
    assert not site.was_ended()
    third = site.connect_late(3)
    third.set()
    site.rest()
    assert site.was_ended()


@pytest.mark.parametrize("fails", [False, True])
def test_a_late_connection_waits_for_the_outcome_of_a_repetition(site: Site, fails: bool) -> None:
    site.backend.create_volume(site.volume)
    gate = site.connect_late(place="after")
    again = site.driver.gate("initialize_connection", 2, "after")
    if fails:
        site.driver.faults.add("initialize_connection:fail_after")
    with ThreadPoolExecutor(max_workers=1) as workers:
        repetition = workers.submit(site.backend.initialize_connection, site.volume)
        until(lambda: len([call for call in site.driver.calls if call[0] == "initialize_connection"]) == 2)
        gate.set()
        if not fails:
            until(lambda: _waiting(site.backend._claims) == 1)
            assert not site.was_ended(), "it was ended while another call was about to be given it"
        again.set()
        assert (repetition.exception(10) is not None) is fails
    site.rest()
    assert site.was_ended() is fails


def test_a_repetition_waits_until_the_late_connection_is_ended(site: Site) -> None:
    site.backend.create_volume(site.volume)
    gate = site.connect_late(place="after")
    may_end = site.driver.gate("terminate_connection", 1, "before")
    gate.set()
    until(lambda: site.driver._counts.get("terminate_connection") == 1)
    with site.little_time(), pytest.raises(errors.StorageBusy, match="is being ended"):
        site.backend.initialize_connection(site.volume)
    with ThreadPoolExecutor(max_workers=1) as workers:
        repetition = workers.submit(site.backend.initialize_connection, site.volume)
        until(lambda: _waiting(site.backend._claims) == 1)
        may_end.set()
        repetition.result(10)
    site.rest()
