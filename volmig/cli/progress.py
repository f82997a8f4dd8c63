"""Showing how far a migration is: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from volmig.cli import sizes
from volmig.cli.report import printable
from volmig.model import Phase

if TYPE_CHECKING:
    from volmig.engine import MigrationEvent
    from volmig.model import Migration

LINE_INTERVAL_SECONDS = 3.0
"""How often a plain line is written while nothing but the figures changes."""


class Progress(Protocol):
    """Something that shows progress between entering and leaving it."""

    def __enter__(self) -> Progress:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take away what must not stay, and leave the rest."""

    def update(self, event: MigrationEvent) -> None:
        """Show what has become of the migration."""

    def note(self, text: str) -> None:
        """Show a line of text."""


def progress_for(
    stream: TextIO, *, quiet: bool = False, may_close: bool = False, environment: Mapping[str, str] | None = None
) -> Progress:
    """Return the progress display that suits *stream*.

    :param may_close: whether to go on in silence when the stream's reader goes away, since the work matters more
        than its display; otherwise the :class:`OSError` is raised.
    """
    if quiet:
        return SilentProgress()
    shown: Progress = PlainProgress(stream)
    if is_live(stream, environment):
        from volmig.cli.live import LiveProgress

        shown = LiveProgress(stream)
    return SteadyProgress(shown) if may_close else shown


def is_live(stream: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Say whether *stream* is a terminal that can redraw a line."""
    terminal = (os.environ if environment is None else environment).get("TERM", "")
    return stream.isatty() and terminal not in ("", "dumb", "unknown")


def label(event: MigrationEvent) -> str:
    """Return what is going on, in a word or two."""
    phase = event.migration.phase.value.replace("_", " ")
    return f"{phase} ({event.migration.stage})" if event.migration.stage else phase


def is_measured(migration: Migration) -> bool:
    """Say whether data is being moved or compared, so that the figures mean something."""
    return migration.stage in ("copy", "verify") and migration.bytes_total > 0


def amounts(migration: Migration) -> list[str]:
    """Return how much is done, how fast it goes and how long it takes, as far as that is known."""
    told: list[str] = []
    if not is_measured(migration):
        return told
    percent = 100 * migration.bytes_done // migration.bytes_total
    told.append(
        f"{sizes.format_approximate(migration.bytes_done)} of "
        f"{sizes.format_approximate(migration.bytes_total)} ({percent} %)"
    )
    if migration.rate_bytes > 0:
        told.append(sizes.format_rate(migration.rate_bytes))
        if migration.eta_seconds is not None:
            told.append(f"{sizes.format_duration(migration.eta_seconds)} left")
    return told


def progress_line(event: MigrationEvent) -> str:
    """Return the state of a migration in one plain line."""
    migration = event.migration
    told = amounts(migration)
    if migration.phase is Phase.ERROR:
        told.append(f"{printable(migration.error_message)} [{migration.error_code}]")
    return label(event) + (f": {', '.join(told)}" if told else "")


class SilentProgress:
    """Shows nothing."""

    def __enter__(self) -> SilentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, event: MigrationEvent) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


class PlainProgress:
    """Writes a line at each change of phase or stage, and one every few seconds between."""

    def __init__(
        self,
        stream: TextIO,
        *,
        interval_seconds: float = LINE_INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._last_label = ""
        self._last_line = ""
        self._last_time = 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, event: MigrationEvent) -> None:
        """Write a line when it is time for one."""
        line, now = progress_line(event), self._clock()
        if label(event) == self._last_label and (
            line == self._last_line or now - self._last_time < self._interval_seconds
        ):
            return
        self._last_label, self._last_line, self._last_time = label(event), line, now
        self.note(line)

    def note(self, text: str) -> None:
        """Write a line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()


class SteadyProgress:
    """Another display, until its stream fails; then nothing."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._failed = False

    def _try(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except OSError:
            self._failed = True

    def __enter__(self) -> SteadyProgress:
        self._try(self._shown.__enter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._try(lambda: self._shown.__exit__(kind, error, trace))

    def update(self, event: MigrationEvent) -> None:
        """Show what has become of the migration, if anybody still looks."""
        self._try(lambda: self._shown.update(event))

    def note(self, text: str) -> None:
        """Show a line of text, if anybody still looks."""
        self._try(lambda: self._shown.note(text))
