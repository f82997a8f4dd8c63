"""The live bar, drawn by rich; imported only where there is a terminal to draw it on."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from volmig.cli import sizes
from volmig.cli.progress import Snapshot, snapshot_of

if TYPE_CHECKING:
    from volmig.engine import MigrationEvent


class _Console(Console):
    """A console that tells when its reader is gone; rich's own would end the process."""

    def on_broken_pipe(self) -> NoReturn:
        # rich calls this while it handles the error.
        raise


class LiveProgress:
    """A bar for each stage, redrawn at each event; without colours when ``NO_COLOR`` is set."""

    def __init__(self, stream: TextIO) -> None:
        self._console = _Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bars: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}", markup=False, justify="right"),
            console=self._console,
            # Redrawn by update() alone: a second thread would meet a closed terminal with nobody to tell.
            auto_refresh=False,
            expand=True,
        )
        self._shown: dict[str, TaskID] = {}
        self._current = ""

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, event: MigrationEvent) -> None:
        """Redraw the bars."""
        self.show(snapshot_of(event))

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the bars."""
        if snapshot.is_final:
            self._end(snapshot)
            return
        name = snapshot.stage or snapshot.label
        if name != self._current:
            self._leave(self._current)
            self._current = name
            if name not in self._shown:
                self._shown[name] = self._bars.add_task(f"{name:<10}", total=1, told="")
        measured = snapshot.is_measured
        self._bars.update(
            self._shown[name],
            total=snapshot.bytes_total if measured else 1,
            completed=snapshot.bytes_done if measured else 0,
            told=self._told(snapshot) if measured else "",
        )
        self._bars.refresh()

    def _end(self, snapshot: Snapshot) -> None:
        """Show the end: what moved data is full after a success, and stands where it stopped otherwise."""
        self._leave(self._current)
        self._current = ""
        if snapshot.is_success:
            for task in self._bars.tasks:
                self._bars.update(task.id, completed=task.total, told=f"100 %  {_amount(task.total or 0)}")
        self._bars.refresh()

    def _leave(self, name: str) -> None:
        """Keep the bar of a stage that moved data, and take away that of a passing phase."""
        if name not in self._shown:
            return
        task = self._shown[name]
        state = next(known for known in self._bars.tasks if known.id == task)
        if state.total and state.completed:
            return
        self._bars.remove_task(task)
        del self._shown[name]

    def _told(self, snapshot: Snapshot) -> str:
        percent = 100 * snapshot.bytes_done // snapshot.bytes_total
        told = [f"{percent:3} %", _amount(snapshot.bytes_done)]
        if snapshot.rate_bytes > 0:
            told.append(sizes.format_rate(snapshot.rate_bytes))
            if snapshot.eta_seconds is not None:
                told.append(f"{sizes.format_duration(snapshot.eta_seconds)} left")
        return "  ".join(told)

    def note(self, text: str) -> None:
        """Show a line above the bars."""
        self._console.print(text)


def _amount(size_bytes: float) -> str:
    # Of constant width, so that the bars do not jump.
    return f"{sizes.format_approximate(size_bytes):>8}"
