"""``volmig migration list``, ``show``, ``watch`` and ``cancel``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.cli.base import BaseCommand, ListCommand, ShowCommand, page_options
from volmig.cli.cells import plain
from volmig.cli.columns import MIGRATION_COLUMNS, is_abandoned, migration_value
from volmig.cli.following import follow
from volmig.cli.history import history_lines
from volmig.cli.interrupts import Interrupted, Interrupts
from volmig.cli.progress import progress_for
from volmig.cli.report import ExitStatus, printable
from volmig.model import Phase

if TYPE_CHECKING:
    from volmig.engine import Engine
    from volmig.model import Migration

_ACTIVE = tuple(phase for phase in Phase if not phase.is_final)
_HISTORY = "history"
_KEPT = "source_kept_until"
_RECORD = (*MIGRATION_COLUMNS, _KEPT)


class _MigrationColumns:
    """How a migration's columns are filled."""

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column."""
        return migration_value(item, column)


class MigrationList(_MigrationColumns, ListCommand):
    """List migrations, the newest first"""

    columns = MIGRATION_COLUMNS
    brief = ("id", "volume_id", "source", "destination", "method", "phase", "bytes_done", "bytes_total", "created_at")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--volume", metavar="VOLUME", help="only those of this volume (id, or unique name)")
        phases = parser.add_mutually_exclusive_group()
        phases.add_argument(
            "--phase",
            action="append",
            choices=[phase.value for phase in Phase],
            help="only those in this phase; may be repeated",
        )
        phases.add_argument("--active", action="store_true", help="only those that have not ended")
        page_options(parser, "migration")
        return parser

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Return the migrations."""
        from volmig.store.base import MigrationQuery

        phases = _ACTIVE if parsed_args.active else tuple(map(Phase, parsed_args.phase or ())) or None
        with self.open_engine() as engine:
            volume_id = _volume_id(engine, parsed_args.volume) if parsed_args.volume else None
            found = engine.list_migrations(
                MigrationQuery(volume_id=volume_id, phases=phases, limit=parsed_args.limit, marker=parsed_args.marker)
            )
        if gone := [migration for migration in found if is_abandoned(migration)]:
            said = "The worker of 1 of them is" if len(gone) == 1 else f"The workers of {len(gone)} of them are"
            self.note(f"{said} gone. Take over with: {self.command('migration', 'recover')}")
        return found


def _volume_id(engine: Engine, volume: str) -> str:
    """Return the id for an id or a name; an id stays good when its volume is gone, since the history is not."""
    from volmig.store.base import MigrationQuery

    try:
        return engine.show_volume(volume).id
    except errors.VolumeNotFound:
        if engine.list_migrations(MigrationQuery(volume_id=volume, limit=1)):
            return volume
        raise


class MigrationShow(ShowCommand):
    """Show all that is recorded of one migration.

    source_kept_until is the time until which the volume's old storage is kept, so that it can be brought back.
    """

    columns = (*_RECORD, _HISTORY)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("migration", metavar="MIGRATION", help="id of the migration")
        parser.add_argument("--history", action="store_true", help="show its journal too: who did what, and when")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Return the migration with its journal."""
        with self.open_engine() as engine:
            migration = engine.show_migration(parsed_args.migration)
            journal = engine.history(parsed_args.migration)
            times = [kept.delete_after for kept in engine.kept_storage(migration.id) if kept.host == migration.source]
            kept = times[0] if times and migration.source_retention_seconds else None
        if kept is not None:
            self._tell_of_kept(migration, kept)
        return migration, kept, journal

    def _tell_of_kept(self, migration: Migration, kept: datetime) -> None:
        old = f"Its old storage in {migration.source}"
        if kept <= datetime.now(UTC):
            self.note(f"{old} was kept until {plain(kept)}. It is deleted, unless it was already, by:")
            self.note(f"  {self.command('migration', 'recover')}")
        else:
            self.note(f"{old} is kept until {plain(kept)}. Bring the volume back to it with:")
            self.note(f"  {self.command('migration', 'rollback', migration.id)}")

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column."""
        migration, kept, _ = item
        return kept if column == _KEPT else migration_value(migration, column)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """Return names and values; the history is the last of them."""
        item = self.item(parsed_args)
        return self.columns, (*self.row(parsed_args, item, _RECORD), plain(item[-1]))

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        """Write the record; the history is part of it for programs, and stands below it for people."""
        *values, journal = data
        asked = parsed_args.columns
        wanted = parsed_args.history or _HISTORY in asked
        if parsed_args.formatter != "table":
            if wanted and asked:
                parsed_args.columns = [*asked, _HISTORY]
            return super().produce_output(parsed_args, self.columns if wanted else _RECORD, data if wanted else values)
        parsed_args.columns = [name for name in asked if name != _HISTORY]
        if parsed_args.columns or not asked:
            super().produce_output(parsed_args, _RECORD, values)
        if wanted:
            self.app.stdout.writelines(f"{line}\n" for line in history_lines(journal))
        return 0


class _OneMigration(BaseCommand):
    """A command that takes the id of a migration."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("migration", metavar="MIGRATION", help="id of the migration")
        return parser


class MigrationWatch(_OneMigration):
    """Show a migration's progress until it ends; the exit status tells how.

    Ctrl-C ends the watching and leaves the migration alone. When its worker is gone, so that it would not go on, the
    command says so and ends with status 4.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Follow the migration."""
        with Interrupts() as interrupts, self.open_engine() as engine:
            handle = engine.migration(parsed_args.migration)
            try:
                with progress_for(self.app.stdout, quiet=self.quiet) as progress:
                    follow(handle, progress, interrupts, resume_with=self.command("migration", "resume", handle.id))
            except Interrupted:
                self.note(
                    f"No longer watching; the migration goes on. "
                    f"Cancel it with: {self.command('migration', 'cancel', handle.id)}"
                )
                return ExitStatus.CANCELLED
            volume = handle.result()
            self.note(f"Volume {printable(volume.name or volume.id)} is at {volume.host}.")
        return ExitStatus.SUCCESS


class MigrationCancel(_MigrationColumns, _OneMigration, ShowCommand):
    """Cancel a migration: what was begun is taken back, and the volume stays at its source.

    Its worker does that; when it has none any more, this command does.
    """

    columns = MIGRATION_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--wait", action="store_true", help="wait until it is undone, and show the progress")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Ask for it to be cancelled."""
        with Interrupts() as interrupts, self.open_engine() as engine:
            migration = engine.cancel_migration(parsed_args.migration)
            if not parsed_args.wait:
                if not migration.phase.is_final:
                    self.note("Cancelling it: what was begun is being taken back. See how it ends with:")
                    self.note(f"  {self.command('migration', 'watch', migration.id)}")
                return migration
            handle = engine.migration(migration.id)
            with progress_for(self.app.stderr, quiet=self.quiet, may_close=True) as progress:
                follow(handle, progress, interrupts)
            ended = handle.status()
            if ended.phase is Phase.SUCCESS:
                raise errors.CancelTooLate(migration=ended.id, phase=ended.phase.value)
            if ended.phase is not Phase.CANCELLED:
                handle.result()
            return ended
