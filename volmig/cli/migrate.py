"""``volmig volume migrate``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.cli import background
from volmig.cli.base import ShowCommand
from volmig.cli.columns import MIGRATION_COLUMNS, migration_value
from volmig.cli.following import run_to_end
from volmig.cli.interrupts import Interrupts
from volmig.cli.progress import progress_for
from volmig.cli.sizes import parse_rate

if TYPE_CHECKING:
    from volmig.conf import Configuration
    from volmig.engine import Engine
    from volmig.model import Migration

VERIFY_CHOICES = ("none", "digest", "compare")


class VolumeMigrate(ShowCommand):
    """Move a volume to another pool.

    Without --wait the request is checked and recorded, a background process takes it, and the command returns.
    With --wait the volume is moved by the command itself, which ends with the migration; Ctrl-C cancels it.
    """

    columns = MIGRATION_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help="id of the volume, or its name if no other has it")
        parser.add_argument(
            "destination", metavar="DESTINATION", help="the pool, as HOST@BACKEND#POOL; `volmig pool list` shows them"
        )
        parser.add_argument(
            "--force-host-copy",
            action="store_true",
            help="copy the data on this host even where the storage could move it by itself",
        )
        parser.add_argument(
            "--lock-volume",
            action="store_true",
            help="keep other requests away from the volume until the migration has ended",
        )
        parser.add_argument("--engine", metavar="NAME", help="transfer engine, such as chunked or dd")
        parser.add_argument(
            "--verify", choices=VERIFY_CHOICES, help="how the data that arrived is compared with what left"
        )
        parser.add_argument("--limit", type=parse_rate, metavar="RATE", help="bytes a second at most, such as 50MiB")
        parser.add_argument("--wait", action="store_true", help="move it here and now, and show the progress")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Move the volume, or have it moved."""
        conf = self.load_configuration()
        request = {
            "force_host_copy": parsed_args.force_host_copy,
            "lock_volume": parsed_args.lock_volume,
            "engine": parsed_args.engine,
            "verify": parsed_args.verify,
            "bandwidth_limit_bytes": parsed_args.limit,
        }
        # Signals are held back before the engine opens and until it has closed.
        with Interrupts() as interrupts, self.open_engine(conf) as engine:
            if parsed_args.wait:
                return self._migrate_here(engine, interrupts, parsed_args, request)
            return self._migrate_apart(engine, conf, parsed_args, request)

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column."""
        return migration_value(item, column)

    def _migrate_here(
        self, engine: Engine, interrupts: Interrupts, parsed_args: argparse.Namespace, request: dict[str, Any]
    ) -> Migration:
        interrupts.check()
        handle = engine.migrate(parsed_args.volume, parsed_args.destination, **request)
        # The display may fail; the migration goes on.
        with progress_for(self.app.stderr, quiet=self.quiet, may_close=True) as progress:
            run_to_end(handle, progress, interrupts, follow_with=self.command("migration", "show", handle.id))
        handle.result()
        return handle.status()

    def _migrate_apart(
        self, engine: Engine, conf: Configuration, parsed_args: argparse.Namespace, request: dict[str, Any]
    ) -> Migration:
        migration = engine.request_migration(parsed_args.volume, parsed_args.destination, **request)
        log = background.log_path(conf.state_path, migration.id)
        arguments = background.worker_arguments(self.config_files, migration.id)
        try:
            pid = background.start_worker(arguments, migration.id, log)
            migration = background.await_claim(engine, migration.id, pid, log)
        except errors.WorkerFailed:
            # Nobody will run it: give the volume and the reserved room free again.
            engine.cancel_migration(migration.id)
            engine.migration(migration.id).wait()
            raise
        if migration.epoch == 0:
            self.note(f"The worker (process {pid}) has not begun yet; its log is {log}.")
        self.note(f"Migration {migration.id} runs in the background. Follow it with:")
        self.note(f"  {self.command('migration', 'watch', migration.id)}")
        return migration
