"""Run one recorded migration to its end: ``python -m volmig.cmd.worker [--config-file FILE]… MIGRATION_ID``.

SIGTERM, SIGINT and SIGHUP cancel the migration cleanly, and the worker ends when it is undone. When somebody pauses the
migration, the worker lets go of it and ends. Exit statuses are those of the command line
(:class:`volmig.cli.report.ExitStatus`). The log goes to stderr.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from volmig import Engine, MigrationHandle, conf, errors
from volmig.cli.report import ExitStatus, report
from volmig.cli.requester import requester

LOG = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_SECONDS = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the migration that *argv* names, and return the exit status."""
    parser = argparse.ArgumentParser(prog="volmig-worker", description="Run one recorded migration to its end.")
    parser.add_argument("--config-file", action="append", metavar="FILE", help="configuration file; may be repeated")
    parser.add_argument("migration_id", metavar="MIGRATION_ID")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        with _stop_requests() as stop:
            run(arguments.migration_id, arguments.config_file, stop)
    except Exception as error:
        LOG.exception("migration %s did not succeed", arguments.migration_id)
        return report(error, sys.stderr)
    return ExitStatus.SUCCESS


def run(migration_id: str, config_files: Sequence[str] | None, stop: threading.Event) -> None:
    """Run a migration until its end, or until it is paused; cancel it when *stop* is set.

    :raises volmig.errors.VolmigError: the migration's error, when it does not succeed.
    """
    with Engine(conf.load(config_files), context=requester()) as engine:
        handle = engine.run_migration(migration_id)
        if not _wait(handle, stop):
            LOG.info("migration %s is out of the hands of this worker, since somebody has paused it", migration_id)
            return
        handle.result()
    LOG.info("migration %s succeeded", migration_id)


def _wait(handle: MigrationHandle, stop: threading.Event) -> bool:
    """Wait for the end; return whether it came here. It does not when somebody pauses the migration."""
    asked = False
    while True:
        try:
            handle.wait(_LOOK_SECONDS)
        except TimeoutError:
            if not handle.runs_here and not handle.status().phase.is_final:
                return False
            if stop.is_set() and not asked:
                asked = _cancel(handle)
        else:
            return True


def _cancel(handle: MigrationHandle) -> bool:
    """Ask for the migration to be cancelled; False when that should be tried again."""
    try:
        handle.cancel()
    except errors.CancelTooLate:
        LOG.warning("migration %s is past the point where it can be cancelled; completing it", handle.id)
    except errors.TemporaryError:
        LOG.exception("cancelling migration %s failed; trying again", handle.id)
        return False
    else:
        LOG.info("migration %s is being cancelled, since this worker was told to stop", handle.id)
    return True


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Let signals set the event that is given; nothing else may happen inside a handler."""
    stop = threading.Event()

    def arrive(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, arrive) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
