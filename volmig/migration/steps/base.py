"""What a step of a migration is.

Every step can be repeated, since a crash can fall between its effect and the record of it. Its intent is recorded
before, and its outcome after it.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from volmig import errors
from volmig.migration.move import Move, Recording
from volmig.model import Phase

Facts = Mapping[str, Any]


class Declined(Exception):
    """The driver does not move the volume itself, for the reason given; the host has to copy it."""


class CannotGoBack(Exception):
    """The volume is whole at its destination and cannot be brought back, so that the way is forward.

    :ivar outcome: what the step that moved it would have recorded.
    """

    def __init__(self, outcome: Facts) -> None:
        super().__init__("the volume cannot be brought back")
        self.outcome = outcome


class Step(abc.ABC):
    """One step. Objects hold no state: what a step knows is in the :class:`Move` and the journal."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    """Phase that the migration is in while the step runs."""
    needed_by: ClassVar[frozenset[str]] = frozenset()
    """Steps that need an effect of this one that ends with the process, so that it is done again before them."""
    commits: ClassVar[bool] = False
    """Whether the step ends with a transaction of its own."""

    def intent(self, move: Move) -> Facts:
        """Return the ids and names that the step is going to create."""
        return {}

    @abc.abstractmethod
    def run(self, move: Move) -> Facts:
        """Do it, and return what is worth recording."""

    def commit(self, move: Move, recording: Recording) -> None:
        """Change the records in the transaction that also records the outcome (with ``commits``)."""

    def undo(self, move: Move) -> None:
        """Take the effect back. Succeeds when there was none, or only a part of it."""

    def after_undo(self, move: Move, recording: Recording) -> None:
        """Record what may appear yet although it was taken back."""

    def leave(self, move: Move, recording: Recording, error: errors.VolmigError) -> None:
        """Record, for later, what :meth:`undo` could not take back for all its attempts."""
