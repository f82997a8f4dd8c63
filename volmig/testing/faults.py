"""Failures at chosen points of a migration, for rehearsing them.

Three kinds of points: the steps of a migration (:func:`failing_steps`), the transactions of a store
(:class:`FailingStore`), and the calls of a driver (the ``fake`` driver's option ``fake_faults``).
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from volmig.migration.move import Move, Recording
from volmig.migration.steps import Step, steps_for
from volmig.model import Method
from volmig.store.base import ReadTransaction, Store, WriteTransaction


class InjectedFailure(Exception):
    """The failure that was asked for: none of volmig's own, as a bug or a broken part would raise it."""


class When(enum.StrEnum):
    """The side of an effect on which to fail."""

    BEFORE = "before"
    AFTER = "after"
    IN_COMMIT = "in_commit"
    """In the transaction that ends the step, which is then undone; only steps that commit have one."""


class FailingStep(Step):
    """A step that fails at one point, as often as told."""

    def __init__(self, step: Step, when: When, *, times: int = 1) -> None:
        self.name = step.name  # type: ignore[misc]  # a class variable of plain steps
        self.phase = step.phase  # type: ignore[misc]
        self.needed_by = step.needed_by  # type: ignore[misc]
        self.commits = step.commits  # type: ignore[misc]
        self._step = step
        self._when = when
        self._left = times

    def intent(self, move: Move) -> Any:
        return self._step.intent(move)

    def run(self, move: Move) -> Any:
        self._fail_if(When.BEFORE)
        outcome = self._step.run(move)
        self._fail_if(When.AFTER)
        return outcome

    def commit(self, move: Move, recording: Recording) -> None:
        self._step.commit(move, recording)
        self._fail_if(When.IN_COMMIT)

    def undo(self, move: Move) -> None:
        self._step.undo(move)

    def leave(self, move: Move, recording: Recording, error: Any) -> None:
        self._step.leave(move, recording, error)

    def _fail_if(self, when: When) -> None:
        if when is self._when and self._left:
            self._left -= 1
            raise InjectedFailure(f"{self.name}: {when.value}")


def failing_steps(name: str, when: When, *, times: int = 1) -> Callable[[Method], Sequence[Step]]:
    """Return a ``steps_for`` for :class:`volmig.migration.runner.MigrationRunner` in which one step fails.

    :param times: how many of its runs fail, from the first.
    """
    failing: dict[Step, FailingStep] = {}

    def steps(method: Method) -> Sequence[Step]:
        return [
            failing.setdefault(step, FailingStep(step, when, times=times)) if step.name == name else step
            for step in steps_for(method)
        ]

    return steps


class FailingStore:
    """A store of which one write transaction fails: undone, or committed and reported as failed.

    :param fail_at: number of the failing write transaction, from 1.
    :param when: ``BEFORE`` for one that is undone, ``AFTER`` for one that is committed all the same, as when the
        connection to a database breaks before its answer comes.
    """

    def __init__(self, store: Store, *, fail_at: int, when: When) -> None:
        self._store = store
        self.fail_at = fail_at
        self._when = when
        self._lock = threading.Lock()
        self.writes = 0
        """Write transactions begun so far."""

    def reading(self) -> AbstractContextManager[ReadTransaction]:
        return self._store.reading()

    @contextmanager
    def writing(self) -> Iterator[WriteTransaction]:
        with self._lock:
            self.writes += 1
            fails = self._fails()
        with self._store.writing() as transaction:
            yield transaction
            if fails and self._when is When.BEFORE:
                raise InjectedFailure(f"write transaction {self.fail_at} is undone")
        if fails:
            raise InjectedFailure(f"write transaction {self.fail_at} is committed")

    def _fails(self) -> bool:
        return self.writes == self.fail_at

    def close(self) -> None:
        self._store.close()


class DyingStore(FailingStore):
    """A store of which every write transaction fails from one on: the worker that uses it is as good as dead.

    :param fail_at: number of the first failing write transaction; may be changed while it is used.
    """

    def __init__(self, store: Store, *, fail_at: int) -> None:
        super().__init__(store, fail_at=fail_at, when=When.BEFORE)

    def _fails(self) -> bool:
        return self.writes >= self.fail_at
