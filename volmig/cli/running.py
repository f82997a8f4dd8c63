"""Having a migration run that was accepted: by this command, or by a process in the background."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from volmig import errors
from volmig.cli import background
from volmig.cli.base import BaseCommand
from volmig.cli.columns import MIGRATION_COLUMNS, migration_value
from volmig.cli.following import is_paused, run_to_end
from volmig.cli.progress import progress_for

if TYPE_CHECKING:
    from volmig.cli.interrupts import Interrupts
    from volmig.conf import Configuration
    from volmig.engine import Engine, MigrationHandle
    from volmig.model import Migration


def _keep_waiting(_: Migration) -> bool:
    return False


class MigrationRunning(BaseCommand):
    """A command that shows a migration and has it run."""

    columns: ClassVar[tuple[str, ...]] = MIGRATION_COLUMNS

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column."""
        return migration_value(item, column)

    def add_wait(self, parser: argparse.ArgumentParser, what: str) -> None:
        """Add ``--wait``."""
        parser.add_argument("--wait", action="store_true", help=what)

    def bring_to_end(
        self, handle: MigrationHandle, interrupts: Interrupts, *, until: Callable[[Migration], bool] = _keep_waiting
    ) -> None:
        """Show the progress of a migration that runs here until its end, however it ends; Ctrl-C cancels it.

        One that somebody pauses is waited for.

        :param until: ends that earlier, when it says so of a state of the migration.
        """
        # The display may fail; the migration goes on.
        with progress_for(self.app.stderr, quiet=self.quiet, may_close=True) as progress:
            run_to_end(
                handle,
                progress,
                interrupts,
                follow_with=self.command("migration", "show", handle.id),
                resume_with=self.command("migration", "resume", handle.id),
                until=until,
            )

    def run_apart(
        self, engine: Engine, conf: Configuration, migration: Migration, *, give_up: Callable[[], str]
    ) -> Migration:
        """Have a queued migration run by a process in the background, and return it when that has taken it.

        :param give_up: undoes what the command has asked for, when the process fails to begin, and says what it did.
        :raises volmig.errors.WorkerFailed: after *give_up*.
        """
        log = background.log_path(conf.state_path, migration.id)
        arguments = background.worker_arguments(self.config_files, migration.id)
        try:
            pid = background.start_worker(arguments, migration.id, log)
            taken = background.await_claim(engine, migration, pid, log)
        except errors.WorkerFailed as error:
            raise errors.WorkerFailed(**error.fields, hint=f"Its log is {log}. {give_up()}") from error
        if is_paused(taken):
            self.note(f"Migration {taken.id} was paused meanwhile. Let it go on with:")
            self.note(f"  {self.command('migration', 'resume', taken.id)}")
            return taken
        if taken.epoch == migration.epoch:
            self.note(f"The worker (process {pid}) has not begun yet; its log is {log}.")
        self.note(f"Migration {taken.id} runs in the background. Follow it with:")
        self.note(f"  {self.command('migration', 'watch', taken.id)}")
        return taken

    def cancel_unstarted(self, engine: Engine, migration_id: str) -> None:
        """Undo a migration that nobody will run, so that the volume and the reserved room are free again."""
        engine.cancel_migration(migration_id)
        engine.migration(migration_id).wait()
