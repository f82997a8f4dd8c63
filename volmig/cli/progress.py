"""Showing how far a migration or a copy is: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from volmig.cli import sizes
from volmig.cli.report import printable
from volmig.model import Phase

if TYPE_CHECKING:
    from volmig.engine import MigrationEvent

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

    def show(self, snapshot: Snapshot) -> None:
        """Show how far it is."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """How far something is, as it is shown."""

    label: str
    """What is going on, in a word or two."""
    stage: str = ""
    """The part of a copy that is going on; empty when none is."""
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bytes: float = 0.0
    eta_seconds: float | None = None
    remark: str = ""
    """Why it ended as it did."""
    is_final: bool = False
    is_success: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether data is being moved or compared, so that the figures mean something."""
        return self.stage in ("copy", "verify") and self.bytes_total > 0


def snapshot_of(event: MigrationEvent) -> Snapshot:
    """Return what is shown of a migration."""
    migration = event.migration
    phase = migration.phase.value.replace("_", " ")
    remark = f"{printable(migration.error_message)} [{migration.error_code}]"
    return Snapshot(
        label=f"{phase} ({migration.stage})" if migration.stage else phase,
        stage=migration.stage,
        bytes_done=migration.bytes_done,
        bytes_total=migration.bytes_total,
        rate_bytes=migration.rate_bytes,
        eta_seconds=migration.eta_seconds,
        remark=remark if migration.phase is Phase.ERROR else "",
        is_final=migration.phase.is_final,
        is_success=migration.phase is Phase.SUCCESS,
    )


def amounts(snapshot: Snapshot) -> list[str]:
    """Return how much is done, how fast it goes and how long it takes, as far as that is known."""
    told: list[str] = []
    if not snapshot.is_measured:
        return told
    percent = 100 * snapshot.bytes_done // snapshot.bytes_total
    told.append(
        f"{sizes.format_approximate(snapshot.bytes_done)} of "
        f"{sizes.format_approximate(snapshot.bytes_total)} ({percent} %)"
    )
    if snapshot.rate_bytes > 0:
        told.append(sizes.format_rate(snapshot.rate_bytes))
        if snapshot.eta_seconds is not None:
            told.append(f"{sizes.format_duration(snapshot.eta_seconds)} left")
    return told


def line_of(snapshot: Snapshot) -> str:
    """Return it in one plain line."""
    told = [*amounts(snapshot), *([snapshot.remark] if snapshot.remark else [])]
    return snapshot.label + (f": {', '.join(told)}" if told else "")


def progress_line(event: MigrationEvent) -> str:
    """Return the state of a migration in one plain line."""
    return line_of(snapshot_of(event))


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

    def show(self, snapshot: Snapshot) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


class PlainProgress:
    """Writes a line whenever something else goes on, and one every few seconds between."""

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
        self.show(snapshot_of(event))

    def show(self, snapshot: Snapshot) -> None:
        """Write a line when it is time for one."""
        line, now = line_of(snapshot), self._clock()
        if snapshot.label == self._last_label and (
            line == self._last_line or now - self._last_time < self._interval_seconds
        ):
            return
        self._last_label, self._last_line, self._last_time = snapshot.label, line, now
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

    def show(self, snapshot: Snapshot) -> None:
        """Show how far it is, if anybody still looks."""
        self._try(lambda: self._shown.show(snapshot))

    def note(self, text: str) -> None:
        """Show a line of text, if anybody still looks."""
        self._try(lambda: self._shown.note(text))
