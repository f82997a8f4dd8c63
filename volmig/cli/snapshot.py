"""``volmig volume snapshot …``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from volmig import errors
from volmig.cli import report
from volmig.cli.base import BaseCommand, ListCommand, ShowCommand
from volmig.cli.volume import VOLUME_HELP

_COLUMNS = ("id", "name")


class _OfVolume(BaseCommand):
    """A command on the snapshots of one volume."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help=VOLUME_HELP)
        return parser


class SnapshotCreate(_OfVolume, ShowCommand):
    """Make a snapshot of a volume, in its backend.

    A migration that has not locked the volume is cancelled first. A volume with snapshots is not migrated.
    """

    columns = _COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", default="", help="a name for people; need not be unique")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Make it."""
        with self.open_engine() as engine:
            return engine.create_snapshot(parsed_args.volume, name=parsed_args.name)


class SnapshotList(_OfVolume, ListCommand):
    """List the snapshots of a volume"""

    columns = _COLUMNS
    brief = _COLUMNS

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Return them."""
        with self.open_engine() as engine:
            return engine.show_volume(parsed_args.volume).snapshots


class SnapshotDelete(_OfVolume):
    """Delete snapshots of a volume"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("snapshot", nargs="+", metavar="SNAPSHOT", help="id of the snapshot")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Delete one after another, report each failure, and return the status of the first."""
        status = report.ExitStatus.SUCCESS
        with self.open_engine() as engine:
            for snapshot in parsed_args.snapshot:
                try:
                    engine.delete_snapshot(parsed_args.volume, snapshot)
                except errors.VolmigError as error:
                    told = report.report(error, self.app.stderr, debug=self.app.options.debug)
                    status = status or told
                else:
                    self.note(f"Deleted snapshot {report.printable(snapshot)}.")
        return status
