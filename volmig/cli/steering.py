"""``volmig migration pause``, ``resume``, ``limit``, ``rollback`` and ``retire``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.cli.base import ShowCommand
from volmig.cli.following import follow, is_paused
from volmig.cli.interrupts import Interrupts
from volmig.cli.progress import progress_for
from volmig.cli.report import printable
from volmig.cli.running import MigrationRunning
from volmig.cli.sizes import format_rate, parse_limit
from volmig.model import Method

if TYPE_CHECKING:
    from volmig.conf import Configuration
    from volmig.engine import Engine, MigrationHandle
    from volmig.model import Migration

_RESUMABLE_ENGINES = ("auto", "chunked")


class _SteeringCommand(MigrationRunning, ShowCommand):
    """A command that takes the id of a migration, and shows its record."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("migration", metavar="MIGRATION", help="id of the migration")
        return parser


class MigrationPause(_SteeringCommand):
    """Hold a migration until it is resumed.

    Its worker stops the copy, lets go of both volumes, and ends. The volume stays locked, and whole at its source. What
    the engine chunked has copied is kept; other engines begin anew. A volume that its driver moves cannot be paused.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        self.add_wait(parser, "wait until it is paused, and show the progress")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Ask for it to be paused."""
        with Interrupts() as interrupts, self.open_engine() as engine:
            migration = engine.pause_migration(parsed_args.migration)
            if parsed_args.wait and not is_paused(migration):
                migration = self._await_pause(engine, interrupts, migration)
            self._tell(engine, migration)
            return migration

    def _await_pause(self, engine: Engine, interrupts: Interrupts, migration: Migration) -> Migration:
        def settled(seen: Migration) -> bool:
            return is_paused(seen) or not seen.pause_requested_by

        handle = engine.migration(migration.id)
        with progress_for(self.app.stderr, quiet=self.quiet, may_close=True) as progress:
            follow(handle, progress, interrupts, until=settled)
        seen = handle.status()
        if is_paused(seen):
            return seen
        reason = f"it has come to phase {seen.phase.value!r}" if seen.phase.is_final else "somebody has resumed it"
        raise errors.PauseImpossible(migration=migration.id, reason=reason)

    def _tell(self, engine: Engine, migration: Migration) -> None:
        if is_paused(migration):
            self.note("It is paused. Let it go on with:")
        elif engine.is_abandoned(migration):
            self.note("No worker runs it. It is paused by the one that takes it over:")
            self.note(f"  {self.command('migration', 'recover')}")
            return
        else:
            self.note(f"Pausing it: its worker stops, and {_what_is_kept(migration)} Let it go on with:")
        self.note(f"  {self.command('migration', 'resume', migration.id)}")


def _what_is_kept(migration: Migration) -> str:
    if migration.method is Method.ROLLBACK:
        return "compares from the beginning when it is resumed."
    if migration.engine in _RESUMABLE_ENGINES:
        return "what it has copied is kept."
    return f"copies from the beginning when it is resumed, since the engine {migration.engine} cannot go on."


class MigrationResume(_SteeringCommand):
    """Let a paused migration go on.

    Without --wait a background process takes it, and the command returns. With --wait the command runs it itself and
    ends with it; Ctrl-C cancels it then. One whose worker has not come to pausing it yet goes on there, and one whose
    worker is gone is taken over.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        self.add_wait(parser, "run it here and now, and show the progress")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Let it go on."""
        conf = self.load_configuration()
        with Interrupts() as interrupts, self.open_engine(conf) as engine:
            interrupts.check()
            migration = engine.request_resume(parsed_args.migration)
            needs_worker = not migration.owner or engine.is_abandoned(migration)
            if parsed_args.wait:
                return self._run_here(engine, interrupts, migration, needs_worker=needs_worker)
            if needs_worker:
                return self._run_apart(engine, conf, migration)
            self.note("It goes on in its worker. Follow it with:")
            self.note(f"  {self.command('migration', 'watch', migration.id)}")
            return migration

    def _run_here(
        self, engine: Engine, interrupts: Interrupts, migration: Migration, *, needs_worker: bool
    ) -> Migration:
        handle = _taken(engine, migration.id) if needs_worker else engine.migration(migration.id)
        self.bring_to_end(handle, interrupts)
        handle.result()
        return handle.status()

    def _run_apart(self, engine: Engine, conf: Configuration, migration: Migration) -> Migration:
        def give_up() -> str:
            paused = engine.pause_migration(migration.id)
            return "The migration stays paused." if is_paused(paused) else "The migration is unchanged."

        return self.run_apart(engine, conf, migration, give_up=give_up)


def _taken(engine: Engine, migration_id: str) -> MigrationHandle:
    """Return a migration that this process runs from now on, unless another was quicker."""
    try:
        return engine.run_migration(migration_id)
    except errors.LeaseLost:
        return engine.migration(migration_id)


class MigrationLimit(_SteeringCommand):
    """Change how fast a migration may copy and compare, at once.

    The engines dd and nbdcopy keep a limit on average only, and move in bursts.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "rate", type=parse_limit, metavar="RATE", help="bytes a second at most, such as 50MiB; 0 for no limit"
        )
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Change the limit."""
        with self.open_engine() as engine:
            migration = engine.limit_migration(parsed_args.migration, parsed_args.rate)
            told = f"It may move {format_rate(parsed_args.rate)}" if parsed_args.rate else "It is not limited any more"
            is_running = bool(migration.owner) and not engine.is_abandoned(migration)
            self.note(f"{told}; {'its worker follows within moments' if is_running else 'that holds when it goes on'}.")
            return migration


class MigrationRollback(_SteeringCommand):
    """Bring a volume back to the old storage that a migration has kept.

    That is a migration of its own. The volume and its old storage are compared, byte for byte; when they differ, since
    the volume was written to, it stays where it is. Then the volume's record names the old storage again, and what the
    volume leaves is deleted, or, with --discard-changes, kept for a while. Without --wait a background process does
    that; with --wait this command does, and Ctrl-C cancels it.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--discard-changes",
            action="store_true",
            help="give up what was written to the volume since its migration: only the old storage is looked at, and "
            "what the volume leaves is kept for as long as that was",
        )
        self.add_wait(parser, "do it here and now, and show the progress")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Bring it back, or have it brought back."""
        conf = self.load_configuration()
        asked = {"discard_changes": parsed_args.discard_changes}
        with Interrupts() as interrupts, self.open_engine(conf) as engine:
            interrupts.check()
            if parsed_args.wait:
                handle = engine.rollback_migration(parsed_args.migration, **asked)
                self.bring_to_end(handle, interrupts)
                volume = handle.result()
                self.note(f"Volume {printable(volume.name or volume.id)} is back at {volume.host}.")
                return handle.status()
            migration = engine.request_rollback(parsed_args.migration, **asked)

            def give_up() -> str:
                self.cancel_unstarted(engine, migration.id)
                return "The rollback was cancelled; the volume is where it was."

            return self.run_apart(engine, conf, migration, give_up=give_up)


class MigrationRetire(_SteeringCommand):
    """Delete the old storage that a migration has kept, before its time.

    The migration cannot be rolled back afterwards.
    """

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Delete it."""
        with self.open_engine() as engine:
            left = engine.retire_migration(parsed_args.migration)
            if left:
                retired = left[0]
                raise errors.OldStorageLeft(
                    name=retired.provider_id or retired.name_id,
                    volume=retired.volume_id,
                    host=retired.host,
                    reason=retired.last_error or "the volume is not seen at its present place, or is being moved",
                )
            self.note("The old storage is deleted; the migration can no longer be rolled back.")
            return engine.show_migration(parsed_args.migration)
