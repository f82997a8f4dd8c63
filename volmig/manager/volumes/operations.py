"""Requests at work on a volume's storage, as the volume's record tells of them.

A request enters itself in ``Volume.operation`` in the transaction that sets the transitional status, and takes itself
out in the one that ends it, so that every other thread and process sees it. What it says is enough for another process
to finish it: what is to be done, who does it, and the time after which it is over whatever happened to that one.

Whoever finishes it enters itself under a new id. The first one, should it live after all, finds another id in the
record and changes nothing more.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Self

from volmig import errors
from volmig.manager.backend import Backend
from volmig.manager.processes import ProcessIdentity
from volmig.manager.retries import LONGEST_PAUSE_SECONDS, Retries
from volmig.model import Volume, VolumeStatus
from volmig.store import Store
from volmig.store.base import WriteTransaction
from volmig.transfer import boottime_seconds

LOG = logging.getLogger(__name__)

MARGIN_SECONDS: Final = 60.0
"""What a request may take beside its driver's calls: the store's transactions, and a busy machine."""

MAY_COME: Final = "may_come"
"""Argument of a request, of which a call that was made before may take effect yet."""

_SETUP: Final = ("do_setup", "check_for_setup_error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """A request at work, as recorded."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    process: ProcessIdentity | None = None
    """Who does it; None where the record does not tell."""
    until: datetime | None = None
    """When it is over whatever happened, on the store's clock; None where the record does not tell."""

    @classmethod
    def of(cls, volume: Volume) -> Self | None:
        """Return the request that a volume's record tells of; None when there is none."""
        record = volume.operation
        if not record:
            return None
        arguments = record.get("arguments")
        process = record.get("process")
        return cls(
            id=str(record.get("id", "")),
            name=str(record.get("name", "")),
            arguments=arguments if isinstance(arguments, Mapping) else {},
            process=ProcessIdentity.from_facts(process) if isinstance(process, Mapping) else None,
            until=_time(record.get("until")),
        )

    def in_progress(self, volume: Volume) -> errors.OperationInProgress:
        """Return the error that refuses another request for *volume* meanwhile."""
        worker = str(self.process) if self.process else "a process that left it to be finished"
        return errors.OperationInProgress(volume=volume.id, operation=self.name, worker=worker)

    def record(self) -> dict[str, Any]:
        """Return it as JSON values, for the volume's record."""
        return {
            "id": self.id,
            "name": self.name,
            "arguments": dict(self.arguments),
            "process": self.process.facts() if self.process else {},
            "until": self.until.isoformat() if self.until else "",
        }


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


@dataclass(kw_only=True)
class Held:
    """A request that this thread is about to do."""

    operation: Operation
    volume: Volume
    """The volume as it was recorded when the request was entered."""
    deadline_seconds: float
    """Until when it may act, on the clock of :func:`volmig.transfer.boottime_seconds`."""
    is_taken_over: bool = False
    """Whether another process has begun it."""
    is_ended: bool = False
    """Whether it is no longer on record."""
    is_left: bool = False
    """Whether it stays on record, to be finished later."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when this thread does nothing more for it."""

    def check(self) -> None:
        """Refuse to act when its time is over, so that another may have finished it: this process was paused.

        :raises volmig.errors.StoreConflict:
        """
        if boottime_seconds() > self.deadline_seconds:
            raise errors.StoreConflict(kind="volume", id=self.volume.id)


class Entry:
    """A transaction that enters one request."""

    def __init__(self, transaction: WriteTransaction, process: ProcessIdentity) -> None:
        self.transaction = transaction
        self.operation_id = str(uuid.uuid4())
        self._process = process
        self._began_seconds = boottime_seconds()

    def add(self, volume: Volume, name: str, *, seconds: float) -> Held:
        """Record a new volume, with the request that makes it.

        :param seconds: how long it may take.
        """
        operation = self._operation(name, seconds=seconds, arguments={})
        made = self.transaction.add_volume(replace(volume, operation=operation.record()))
        return self._held(operation, made, seconds)

    def begin(
        self, volume: Volume, name: str, *, seconds: float, arguments: Mapping[str, Any], status: VolumeStatus
    ) -> Held:
        """Enter a request in the record of a volume that has none.

        :param seconds: how long it may take.
        :param status: the volume's status meanwhile.
        """
        operation = self._operation(name, seconds=seconds, arguments=arguments)
        entered = self.transaction.update_volume(volume, operation=operation.record(), status=status)
        return self._held(operation, entered, seconds)

    def take_over(self, volume: Volume, operation: Operation, *, seconds: float, may_come: bool) -> Held:
        """Enter this process as the one that does a request which a volume's record has.

        :param may_come: whether a call of the one that did it before may take effect yet.
        """
        arguments = {**operation.arguments, MAY_COME: True} if may_come else operation.arguments
        own = self._operation(operation.name, seconds=seconds, arguments=arguments)
        entered = self.transaction.update_volume(volume, operation=own.record())
        return self._held(own, entered, seconds, is_taken_over=True)

    def _operation(self, name: str, *, seconds: float, arguments: Mapping[str, Any]) -> Operation:
        return Operation(
            id=self.operation_id,
            name=name,
            arguments=dict(arguments),
            process=self._process,
            until=self.transaction.now() + timedelta(seconds=seconds),
        )

    def _held(self, operation: Operation, volume: Volume, seconds: float, *, is_taken_over: bool = False) -> Held:
        return Held(
            operation=operation,
            volume=volume,
            deadline_seconds=self._began_seconds + seconds,
            is_taken_over=is_taken_over,
        )


class Operations:
    """Enters requests in the records of volumes, and takes them out.

    :param process: returns the identity of the process that runs; a child that it has forked is another one.
    """

    def __init__(self, store: Store, process: Callable[[], ProcessIdentity]) -> None:
        self._store = store
        self._process = process
        self._lock = threading.Lock()
        self._given_up: set[str] = set()

    # --- a request of this thread -------------------------------------------------------------

    @contextmanager
    def entering(self) -> Iterator[Entry]:
        """Begin a transaction that enters a request.

        A transaction that fails at its end may have been committed all the same; its request is then given up.
        """
        entry: Entry | None = None
        is_complete = False
        try:
            with self._store.writing() as transaction:
                entry = Entry(transaction, self._process())
                yield entry
                is_complete = True
        except Exception:
            if is_complete and entry is not None:
                self._give_up(entry.operation_id)
            raise

    @contextmanager
    def at_work(self, held: Held) -> Iterator[Held]:
        """Do a request; one that fails before its end is left to others, who may finish it from then on.

        What interrupts this thread does not stop the driver's call, so that the request is then left until its time is
        over, or the process has ended.
        """
        try:
            yield held
        except Exception:
            if not held.is_ended and not held.is_left:
                self._let_go(held)
            raise
        finally:
            held.over.set()

    def end(self, held: Held, change: Callable[[WriteTransaction, Volume], Volume]) -> Volume:
        """Take a request out of its volume's record, and return what is recorded then.

        :param change: does that, with the changes that the request has led to; gets the record as it is by then, with
            what others have changed that does not concern the storage, such as the name.
        :raises volmig.errors.StoreConflict: when another has finished the request.
        """
        with self._store.writing() as transaction:
            ended = change(transaction, self._mine(transaction, held))
        held.is_ended = True
        return ended

    def finish(self, held: Held, **changes: Any) -> Volume:
        """Take a request out of its volume's record, with changes to that; raises as :meth:`end`."""
        return self.end(held, lambda transaction, volume: transaction.update_volume(volume, operation={}, **changes))

    def amend(self, held: Held, **arguments: Any) -> None:
        """Record what whoever takes a request over has to know, before this thread goes on with it.

        :param arguments: to be added to those of the request.
        :raises volmig.errors.StoreConflict: when another has taken it over, or finished it.
        """
        held.check()
        amended = replace(held.operation, arguments={**held.operation.arguments, **arguments})
        with self._store.writing() as transaction:
            transaction.update_volume(self._mine(transaction, held), operation=amended.record())
        held.operation = amended

    def postpone(self, held: Held, *, seconds: float, **arguments: Any) -> None:
        """Leave a request to :meth:`VolumeManager.recover`, from a time on.

        :param arguments: to be added to those of the request.
        """
        self._leave(held, seconds=seconds, arguments=arguments)
        held.is_left = True

    def _let_go(self, held: Held) -> None:
        try:
            self._leave(held, seconds=0, arguments={})
        except errors.StoreConflict:
            LOG.debug("volume %s: another has finished %s", held.volume.id, held.operation.name)
        except Exception as error:  # noqa: BLE001
            # The error that matters is the one under way. This process at least knows that nobody does it any more.
            LOG.warning("volume %s: %s is left as it is: %s", held.volume.id, held.operation.name, error)
            self._give_up(held.operation.id)

    def _leave(self, held: Held, *, seconds: float, arguments: Mapping[str, Any]) -> None:
        before = held.operation
        with self._store.writing() as transaction:
            volume = self._mine(transaction, held)
            until = transaction.now() + timedelta(seconds=seconds)
            left = Operation(id=before.id, name=before.name, arguments={**before.arguments, **arguments}, until=until)
            transaction.update_volume(volume, operation=left.record())

    def _give_up(self, operation_id: str) -> None:
        with self._lock:
            self._given_up.add(operation_id)

    @staticmethod
    def _mine(transaction: WriteTransaction, held: Held) -> Volume:
        conflict = errors.StoreConflict(kind="volume", id=held.volume.id)
        try:
            volume = transaction.get_volume(held.volume.id)
        except errors.VolumeNotFound as error:
            raise conflict from error
        if volume.operation.get("id") != held.operation.id:
            raise conflict
        return volume

    # --- a request of another -----------------------------------------------------------------

    def take_over(self, volume: Volume, seconds: float) -> Held | None:
        """Enter this process in the record as the one that finishes a request, if whoever did it does so no more.

        :returns: None when the record has another request by now, or none.
        :raises volmig.errors.OperationInProgress: when it is still being done, or may be.
        """
        seen = Operation.of(volume)
        with self.entering() as entry:
            transaction = entry.transaction
            try:
                current = transaction.get_volume(volume.id)
            except errors.VolumeNotFound:
                return None
            operation = Operation.of(current)
            if operation is None or seen is None or operation.id != seen.id:
                return None
            if not self._is_abandoned(operation, transaction.now()):
                raise operation.in_progress(current)
            return entry.take_over(current, operation, seconds=seconds, may_come=not self._is_gone(operation))

    def is_abandoned(self, volume: Volume, now: datetime) -> bool:
        """Say whether a volume's record has a request that nobody does any more.

        :param now: the time on the store's clock.
        """
        operation = Operation.of(volume)
        return operation is not None and self._is_abandoned(operation, now)

    def forget_all_but(self, known: Set[str], present: Set[str]) -> None:
        """Forget which requests were given up that are on record no more.

        :param known: what :meth:`given_up` said before the records were read.
        :param present: the ids of the requests on record.
        """
        with self._lock:
            self._given_up -= known - present

    def given_up(self) -> frozenset[str]:
        """Return the ids of requests of this process that nobody does any more, though a record may have them."""
        with self._lock:
            return frozenset(self._given_up)

    def _is_abandoned(self, operation: Operation, now: datetime) -> bool:
        with self._lock:
            if operation.id in self._given_up:
                return True
        if operation.until is not None and operation.until <= now:
            return True
        if operation.process is None:
            return operation.until is None
        return self._is_gone(operation)

    def _is_gone(self, operation: Operation) -> bool:
        """Say whether the process that does a request has certainly ended, and every call of a driver with it."""
        return operation.process is not None and operation.process.is_gone(self._process().host)


def longest_seconds(backend: Backend, *methods: str) -> float:
    """Return how long a request may take that makes these calls of a backend's driver, each once.

    A call may have to wait for the driver's setup, and for a late call about the same object to end.
    """
    retries = Retries.from_options(backend.driver.options)
    pauses = retries.count * max(retries.delay_seconds, LONGEST_PAUSE_SECONDS)

    def call(method: str) -> float:
        return backend.call_seconds(method) * (retries.count + 1) + pauses

    setup = sum(call(method) for method in _SETUP)
    return MARGIN_SECONDS + setup + sum(call(method) + backend.call_seconds(method) for method in methods)
