"""Following a migration to its end, with Ctrl-C as the way to cancel it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from volmig import errors
from volmig.cli.interrupts import Interrupted, Interrupts
from volmig.cli.report import ExitStatus

if TYPE_CHECKING:
    from volmig.cli.progress import Progress
    from volmig.engine import MigrationHandle

_INTERVAL_SECONDS = 0.1


def follow(handle: MigrationHandle, progress: Progress, interrupts: Interrupts) -> None:
    """Show a migration's progress until its end.

    :raises Interrupted: at Ctrl-C; the migration is not touched.
    """
    events = handle.events(_INTERVAL_SECONDS)
    while True:
        with interrupts.waiting():
            event = next(events, None)
        if event is None:
            return
        progress.update(event)


def run_to_end(handle: MigrationHandle, progress: Progress, interrupts: Interrupts, *, follow_with: str) -> None:
    """Follow a migration that this process runs; the first Ctrl-C cancels it and waits until it is undone.

    The second one tells what goes on, and the third leaves at once, with what remains to whoever takes it over.

    :param follow_with: the command that shows the migration later.
    """
    presses = 0
    while True:
        try:
            follow(handle, progress, interrupts)
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
                _leave(handle.id, follow_with)
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


def _leave(migration_id: str, follow_with: str) -> None:
    """End the process without the clean-up that the user does not want to wait for.

    The engine's threads end with it, as in a crash; the migration's lease runs out, and the next worker that
    takes it finishes the clean-up from the journal.
    """
    try:
        sys.stderr.write(f"Left migration {migration_id} unfinished. See: {follow_with}\n")
        sys.stderr.flush()
    finally:
        os._exit(ExitStatus.CANCELLED)
