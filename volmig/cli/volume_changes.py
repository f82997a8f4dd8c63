"""``volmig volume set`` and ``volmig volume retype``."""

from __future__ import annotations

import argparse
from typing import Any

from volmig import errors
from volmig.cli.base import ShowCommand, key_values
from volmig.cli.volume import VOLUME_COLUMNS, VOLUME_HELP


class _ChangeVolume(ShowCommand):
    """A command that changes a volume, and shows its record."""

    columns = VOLUME_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help=VOLUME_HELP)
        return parser


class VolumeSet(_ChangeVolume):
    """Change a volume's name and metadata; a migration goes on meanwhile, and keeps the change"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", help="its new name, for people; need not be unique")
        parser.add_argument(
            "--property",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="metadata to add, or to replace; may be repeated",
        )
        parser.add_argument(
            "--unset", action="append", default=[], metavar="KEY", help="metadata to remove; may be repeated"
        )
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Change it."""
        metadata = key_values(parsed_args.property)
        if parsed_args.name is None and not metadata and not parsed_args.unset:
            raise errors.RequestInvalid(
                what="The request", reason="it changes nothing", hint="Give --name, --property or --unset."
            )
        for key in parsed_args.unset:
            if key in metadata:
                raise errors.RequestInvalid(what=f"The property {key!r}", reason="it is both set and removed")
        with self.open_engine() as engine:
            return engine.update_volume(
                parsed_args.volume, name=parsed_args.name, metadata=metadata, remove_metadata=parsed_args.unset
            )


class VolumeRetype(_ChangeVolume):
    """Give a volume another type, in its place.

    Its storage adapts to that, if its backend can. A migration that has not locked the volume is cancelled first.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("type", metavar="TYPE", help="the new volume type")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Change its type."""
        with self.open_engine() as engine:
            return engine.retype_volume(parsed_args.volume, parsed_args.type)
