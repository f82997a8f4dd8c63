"""``volmig migration recover``."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from volmig import errors
from volmig.cli import report
from volmig.cli.base import ListCommand
from volmig.cli.following import is_paused, leave
from volmig.cli.interrupts import Interrupted, Interrupts
from volmig.cli.migration import MigrationList
from volmig.cli.report import ExitStatus
from volmig.cli.running import MigrationRunning

if TYPE_CHECKING:
    from volmig.cli.app import VolmigApp
    from volmig.engine import MigrationHandle

LOG = logging.getLogger(__name__)

_HOUR_SECONDS = 3600.0


class MigrationRecover(MigrationRunning, ListCommand):
    """Take over the migrations whose worker is gone, and bring them to their end here.

    Also ends what other requests have left unfinished whose process is gone, deletes old storage that is due, and looks
    again for volumes that are in doubt. The exit status is 0 when each of the migrations came to an end, however it
    ended; the list says how.

    With --keep the command stays, and does all that now and every [migration] recovery_interval_seconds, as a service.
    It writes a log to stderr, and nothing to stdout. At the first SIGTERM, SIGINT or SIGHUP it lets go of the
    migrations that run in it, so that another goes on with them where they are, and ends; the second ends it at once,
    and what ran is taken over by another when its lease has run out.
    """

    brief = MigrationList.brief

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--keep", action="store_true", help="stay, and recover now and again, until told to stop")
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Bring each to its end, list them, and return the status of the first that could not be."""
        if parsed_args.keep:
            return self._keep_recovering()
        self._status = ExitStatus.SUCCESS
        return super().run(parsed_args) or self._status

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Bring each to its end."""
        with Interrupts() as interrupts, self.open_engine() as engine:
            handles = engine.recover()
            for handle in handles:
                self.note(f"Taking over migration {handle.id} of volume {handle.status().volume_id}.")
                try:
                    self._end(handle, interrupts)
                except errors.VolmigError as error:
                    # The others have been taken over too, and somebody has to wait for them.
                    told = report.report(error, self.app.stderr, debug=self.app.options.debug)
                    self._status = self._status or told
            return [engine.show_migration(handle.id) for handle in handles]

    def _end(self, handle: MigrationHandle, interrupts: Interrupts) -> None:
        """Follow a migration until it has ended, or is paused."""
        self.bring_to_end(handle, interrupts, until=is_paused)
        if is_paused(handle.status()):
            self.note("It is paused. Let it go on with:")
            self.note(f"  {self.command('migration', 'resume', handle.id)}")
            return
        # Its events also stop when it could not be brought to an end; this tells why, and does not wait any more.
        handle.wait()

    def _keep_recovering(self) -> int:
        cast("VolmigApp", self.app).log_for_service()
        with Interrupts() as interrupts:
            engine = self.open_engine()
            try:
                engine.keep_recovering()
                LOG.info("recovering, now and again, until SIGTERM or SIGINT")
                with interrupts.waiting():
                    while True:
                        time.sleep(_HOUR_SECONDS)
            except Interrupted:
                LOG.info("told to stop: letting go of the migrations that run here; a second signal ends it at once")
            finally:
                try:
                    with interrupts.waiting():
                        engine.close(hand_over=True)
                except Interrupted:
                    leave("Told to stop at once: what ran here is taken over when its lease has run out.")
        LOG.info("stopped")
        return ExitStatus.SUCCESS
