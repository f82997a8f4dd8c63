"""Migrations, events and handles made up for tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from volmig import errors
from volmig.engine import MigrationEvent
from volmig.model import Method, Migration, Phase

MIB = 1024**2


def migration(phase: Phase = Phase.MIGRATING, **fields: Any) -> Migration:
    values: dict[str, Any] = {
        "id": "11111111-2222-3333-4444-555555555555",
        "volume_id": "99999999-2222-3333-4444-555555555555",
        "source": "h@a#a",
        "destination": "h@b#b",
        "destination_id": "77777777-2222-3333-4444-555555555555",
        "method": Method.BLOCK,
        "bytes_total": 256 * MIB,
    }
    return Migration(phase=phase, **(values | fields))


def event(phase: Phase = Phase.MIGRATING, **fields: Any) -> MigrationEvent:
    return MigrationEvent(migration=migration(phase, **fields))


@dataclass
class Handle:
    """Plays the events of a script; an exception in it is raised where a signal handler would raise it."""

    script: Sequence[Any]
    cancel_error: errors.VolmigError | None = None
    cancelled: int = 0
    id: str = "11111111-2222-3333-4444-555555555555"
    _rest: Iterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._rest = iter(self.script)

    def events(self, interval_seconds: float = 0.25) -> Iterator[Any]:
        for item in self._rest:
            if isinstance(item, BaseException):
                raise item
            yield item

    def cancel(self) -> None:
        self.cancelled += 1
        if self.cancel_error:
            raise self.cancel_error


class Recorder:
    """A progress display that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.notes: list[str] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def update(self, event: Any) -> None:
        self.events.append(event)

    def note(self, text: str) -> None:
        self.notes.append(text)
