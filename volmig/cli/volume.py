"""``volmig volume …``: making, showing, extending and deleting volumes; see the modules beside for the rest."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.cli import report
from volmig.cli.base import BaseCommand, ListCommand, ShowCommand, key_values, page_options
from volmig.cli.sizes import parse_size
from volmig.model import VolumeStatus

if TYPE_CHECKING:
    from volmig.engine import Engine

__all__ = [
    "VolumeCreate",
    "VolumeDelete",
    "VolumeExtend",
    "VolumeList",
    "VolumeManage",
    "VolumeShow",
    "VolumeUnmanage",
]

VOLUME_COLUMNS = (
    "id",
    "name",
    "size_bytes",
    "host",
    "status",
    "migration_status",
    "status_reason",
    "migration_id",
    "name_id",
    "provider_location",
    "provider_id",
    "format",
    "volume_type",
    "project_id",
    "metadata",
    "attachments",
    "snapshots",
    "operation",
    "created_at",
    "updated_at",
    "version",
)
_SIZE_HELP = "10GiB, 512MiB, 1000B, 10G (units of 1024, as in dd and qemu-img); a bare number is GiB, as in Cinder"
VOLUME_HELP = "id of the volume, or its name if no other volume has it"


class VolumeCreate(ShowCommand):
    """Create an empty volume in a pool"""

    columns = VOLUME_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--host", required=True, metavar="HOST@BACKEND#POOL", help="the pool; `volmig pool list` shows them"
        )
        parser.add_argument("--size", required=True, type=parse_size, metavar="SIZE", help=_SIZE_HELP)
        parser.add_argument("--name", default="", help="a name for people; need not be unique")
        parser.add_argument("--type", metavar="TYPE", help="volume type, recorded with the volume")
        _owner_options(parser)
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Create the volume."""
        metadata = key_values(parsed_args.property)
        with self.open_engine() as engine:
            return engine.create_volume(
                host=parsed_args.host,
                size_bytes=parsed_args.size,
                name=parsed_args.name,
                volume_type=parsed_args.type,
                project_id=parsed_args.project,
                metadata=metadata,
            )


def _owner_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", metavar="ID", help="the owner, recorded with the volume")
    parser.add_argument(
        "--property", action="append", default=[], metavar="KEY=VALUE", help="metadata; may be repeated"
    )


class VolumeList(ListCommand):
    """List volumes, the oldest first"""

    columns = VOLUME_COLUMNS
    brief = ("id", "name", "size_bytes", "host", "status", "migration_status")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", help="only volumes of this name")
        parser.add_argument("--host", metavar="HOST[@BACKEND[#POOL]]", help="only volumes of a pool, backend or host")
        parser.add_argument("--status", choices=[status.value for status in VolumeStatus], help="only in this status")
        parser.add_argument("--project", metavar="ID", help="only volumes of this owner")
        page_options(parser, "volume")
        return parser

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Return the volumes."""
        from volmig.store.base import VolumeQuery

        query = VolumeQuery(
            name=parsed_args.name,
            host=parsed_args.host,
            status=VolumeStatus(parsed_args.status) if parsed_args.status else None,
            project_id=parsed_args.project,
            limit=parsed_args.limit,
            marker=parsed_args.marker,
        )
        with self.open_engine() as engine:
            return engine.list_volumes(query)


class VolumeShow(ShowCommand):
    """Show all that is recorded of one volume"""

    columns = VOLUME_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help=VOLUME_HELP)
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Return the volume."""
        with self.open_engine() as engine:
            return engine.show_volume(parsed_args.volume)


class VolumeExtend(ShowCommand):
    """Make a volume larger"""

    columns = VOLUME_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", metavar="VOLUME", help=VOLUME_HELP)
        parser.add_argument("size", type=parse_size, metavar="SIZE", help=f"its new size: {_SIZE_HELP}")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Extend the volume."""
        with self.open_engine() as engine:
            return engine.extend_volume(parsed_args.volume, parsed_args.size)


class VolumeManage(ShowCommand):
    """Take an existing image file into management as a volume; its data stays as it is"""

    columns = VOLUME_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("path", metavar="PATH", help="the image file, inside the directory of a backend")
        parser.add_argument(
            "--host", metavar="HOST@BACKEND#POOL", help="the pool that has it; found by the path when not given"
        )
        parser.add_argument("--name", default="", help="a name for people; need not be unique")
        _owner_options(parser)
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Take the file over."""
        metadata = key_values(parsed_args.property)
        # Links are not followed here: whether one is acceptable is for the driver to say.
        given = Path(parsed_args.path)
        # A name alone is the object's name in the pool that is named, unless there is a file of that name here.
        is_name = parsed_args.host and given.name == parsed_args.path and not os.path.lexists(given)
        reference = given.name if is_name else str(given.absolute())
        with self.open_engine() as engine:
            return engine.manage_volume(
                reference,
                host=parsed_args.host,
                name=parsed_args.name,
                project_id=parsed_args.project,
                metadata=metadata,
            )


class _EachVolume(BaseCommand):
    """A command that does the same to each of the volumes named."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("volume", nargs="+", metavar="VOLUME", help=VOLUME_HELP)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Treat one volume after another, report each failure, and return the status of the first."""
        status = report.ExitStatus.SUCCESS
        with self.open_engine() as engine:
            for volume in parsed_args.volume:
                try:
                    self.note(self.treat(engine, volume))
                except errors.VolmigError as error:
                    told = report.report(error, self.app.stderr, debug=self.app.options.debug)
                    status = status or told
        return status

    def treat(self, engine: Engine, volume: str) -> str:
        """Do it to one volume and say so."""
        raise errors.InternalError(reason=f"{type(self).__name__} does nothing")


class VolumeDelete(_EachVolume):
    """Delete volumes and their data"""

    def treat(self, engine: Engine, volume: str) -> str:
        """Delete one."""
        engine.delete_volume(volume)
        return f"Deleted volume {report.printable(volume)}."


class VolumeUnmanage(_EachVolume):
    """Forget volumes, and leave their storage and data as they are"""

    def treat(self, engine: Engine, volume: str) -> str:
        """Let go of one."""
        engine.unmanage_volume(volume)
        return f"Volume {report.printable(volume)} is no longer managed; its storage was left as it is."
