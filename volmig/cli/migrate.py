"""``volmig volume migrate``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from volmig.cli.base import ShowCommand
from volmig.cli.durations import parse_duration
from volmig.cli.interrupts import Interrupts
from volmig.cli.running import MigrationRunning
from volmig.cli.sizes import parse_limit

if TYPE_CHECKING:
    from volmig.conf import Configuration
    from volmig.engine import Engine
    from volmig.model import Migration

VERIFY_CHOICES = ("none", "digest", "compare")


class VolumeMigrate(MigrationRunning, ShowCommand):
    """Move a volume to another pool.

    Without --wait the request is checked and recorded, a background process takes it, and the command returns.
    With --wait the volume is moved by the command itself, which ends with the migration; Ctrl-C cancels it. When
    somebody pauses it, the command says so and waits on.
    """

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
        parser.add_argument(
            "--limit", type=parse_limit, metavar="RATE", help="bytes a second at most, such as 50MiB; 0 for no limit"
        )
        parser.add_argument(
            "--retain",
            type=parse_duration,
            metavar="TIME",
            help="keep the old storage for so long afterwards, so that the migration can be rolled back: 30s, 10m, "
            "2h, 7d; a bare number is seconds. 0 deletes it at once",
        )
        self.add_wait(parser, "move it here and now, and show the progress")
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
            "source_retention_seconds": parsed_args.retain,
        }
        # Signals are held back before the engine opens and until it has closed.
        with Interrupts() as interrupts, self.open_engine(conf) as engine:
            if parsed_args.wait:
                return self._migrate_here(engine, interrupts, parsed_args, request)
            return self._migrate_apart(engine, conf, parsed_args, request)

    def _migrate_here(
        self, engine: Engine, interrupts: Interrupts, parsed_args: argparse.Namespace, request: dict[str, Any]
    ) -> Migration:
        interrupts.check()
        handle = engine.migrate(parsed_args.volume, parsed_args.destination, **request)
        self.bring_to_end(handle, interrupts)
        handle.result()
        return handle.status()

    def _migrate_apart(
        self, engine: Engine, conf: Configuration, parsed_args: argparse.Namespace, request: dict[str, Any]
    ) -> Migration:
        migration = engine.request_migration(parsed_args.volume, parsed_args.destination, **request)

        def give_up() -> str:
            self.cancel_unstarted(engine, migration.id)
            return "Nothing was moved; the migration was cancelled."

        return self.run_apart(engine, conf, migration, give_up=give_up)
