"""Following a migration to its end, with Ctrl-C as the way to cancel it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from volmig import errors
from volmig.cli.interrupts import Interrupted, Interrupts
from volmig.cli.report import ExitStatus, printable
from volmig.model import Phase

if TYPE_CHECKING:
    from volmig.cli.progress import Progress
    from volmig.engine import MigrationHandle
    from volmig.model import Migration

_INTERVAL_SECONDS = 0.1


def is_paused(migration: Migration) -> bool:
    """Say whether nothing happens to a migration until somebody resumes or cancels it."""
    return migration.phase is Phase.PAUSED


def follow(
    handle: MigrationHandle,
    progress: Progress,
    interrupts: Interrupts,
    *,
    resume_with: str = "",
    until: Callable[[Migration], bool] = lambda _: False,
) -> None:
    """Show a migration's progress until its end; one that is paused is waited for, too.

    :param resume_with: the command that lets it go on when somebody has paused it.
    :param until: ends it earlier, when it says so of a state of the migration.
    :raises Interrupted: at Ctrl-C; the migration is not touched.
    """
    events = handle.events(_INTERVAL_SECONDS)
    was_paused = False
    while True:
        with interrupts.waiting():
            event = next(events, None)
        if event is None:
            return
        progress.update(event)
        migration = event.migration
        if until(migration):
            return
        if is_paused(migration) and not was_paused:
            told = f" It goes on with: {resume_with}" if resume_with else ""
            progress.note(f"Paused, as {printable(migration.pause_requested_by)} asked.{told}")
        was_paused = is_paused(migration)


def run_to_end(
    handle: MigrationHandle,
    progress: Progress,
    interrupts: Interrupts,
    *,
    follow_with: str,
    resume_with: str = "",
    until: Callable[[Migration], bool] = lambda _: False,
) -> None:
    """Follow a migration that this process runs; the first Ctrl-C cancels it and waits until it is undone.

    The second one tells what goes on, and the third leaves at once, with what remains to whoever takes it over.

    :param follow_with: the command that shows the migration later.
    :param resume_with: as for :func:`follow`.
    :param until: as for :func:`follow`.
    """
    presses = 0
    while True:
        try:
            follow(handle, progress, interrupts, resume_with=resume_with, until=until)
        except Interrupted:
            presses += 1
            if presses == 1:
                progress.note(_cancel(handle))
            elif presses == 2:
                progress.note(
                    f"Still at work on it. Press Ctrl-C once more to leave at once: what is unfinished is then taken "
                    f"up again later, and `{follow_with}` shows it."
                )
            else:
                leave(f"Left migration {handle.id} unfinished. See: {follow_with}")
        else:
            return


def _cancel(handle: MigrationHandle) -> str:
    try:
        handle.cancel()
    except errors.CancelTooLate:
        return "Too late to cancel: the data is across, and the migration is being completed."
    except errors.VolmigError as error:
        return f"Cancelling failed ({error.message}); the migration goes on."
    return "Cancelling: taking back what was begun. The volume stays at its source, unchanged."


def leave(said: str) -> None:
    """End the process without the clean-up that the user does not want to wait for.

    The engine's threads end with it, as in a crash; the leases of its migrations run out, and the next worker that
    takes one goes on from its journal.

    :param said: what to tell the user before.
    """
    try:
        sys.stderr.write(f"{said}\n")
        sys.stderr.flush()
    finally:
        os._exit(ExitStatus.CANCELLED)
