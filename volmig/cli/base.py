"""What all commands share: the engine, the notes on stderr, and output with stable column names.

Columns have the names of the fields of :mod:`volmig.model`. Programs (``-f json``, ``yaml``, ``csv``, ``value``) get
sizes as whole bytes under names that end in ``_bytes``; tables show them readable, under the name without that ending.
``-c`` and ``--sort-column`` take both names.
"""

from __future__ import annotations

import abc
import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne

from volmig import errors
from volmig.cli.cells import cell, plain

if TYPE_CHECKING:
    from volmig.conf import Configuration
    from volmig.engine import Engine


def command_line(config_files: Sequence[str] | None, *words: str) -> str:
    """Return a volmig command that can be pasted into a shell."""
    options = [part for path in config_files or () for part in ("--config-file", path)]
    return shlex.join(["volmig", *options, *words])


class BaseCommand(Command):
    """A command that works on the engine."""

    def get_epilog(self) -> str:
        """Return no text: cliff's own would read the metadata of every installed distribution."""
        return self._epilog or ""

    @property
    def config_files(self) -> list[str] | None:
        """The files given with ``--config-file``; None for the usual places."""
        return getattr(self.app_args, "config_file", None)

    @property
    def quiet(self) -> bool:
        """Whether only results and errors are wanted."""
        return getattr(self.app_args, "verbose_level", 1) == 0

    def load_configuration(self) -> Configuration:
        """Read the configuration."""
        from volmig import conf

        return conf.load(self.config_files)

    def open_engine(self, conf: Configuration | None = None) -> Engine:
        """Return an engine for the user that runs this process; it has to be closed."""
        from volmig.cli.requester import requester
        from volmig.engine import Engine

        return Engine(self.load_configuration() if conf is None else conf, context=requester())

    def note(self, text: str) -> None:
        """Tell people something that is not part of the output."""
        if not self.quiet:
            self.app.stderr.write(f"{text}\n")
            self.app.stderr.flush()

    def command(self, *words: str) -> str:
        """Return a volmig command with the same configuration, to be shown."""
        return command_line(self.config_files, *words)


class _Columns:
    """Check and name columns; mixed into cliff's display commands."""

    columns: ClassVar[tuple[str, ...]]
    """All columns, under their stable names."""

    def settle(self, parsed_args: argparse.Namespace) -> None:
        """Put the stable names into ``-c`` and ``--sort-column``, before the command has any effect.

        :raises volmig.errors.RequestInvalid: when there is no such column.
        """
        parsed_args.columns = [self._stable(name) for name in parsed_args.columns]
        if hasattr(parsed_args, "sort_columns"):
            parsed_args.sort_columns = [self._stable(name) for name in parsed_args.sort_columns]

    def _stable(self, name: str) -> str:
        asked = name.strip().lower().replace(" ", "_")
        for column in self.columns:
            if asked in (column, column.removesuffix("_bytes")):
                return column
        raise errors.RequestInvalid(
            what=f"The column {name!r}", reason=f"the columns are {', '.join(self.columns)}", hint="Name one of these."
        )

    def titles(self, parsed_args: argparse.Namespace, names: Sequence[str]) -> list[str]:
        """Return the headings for *names* in the chosen format; fits ``-c`` and ``--sort-column`` to them."""
        if parsed_args.formatter != "table":
            return list(names)
        parsed_args.columns = [name.removesuffix("_bytes") for name in parsed_args.columns]
        if hasattr(parsed_args, "sort_columns"):
            parsed_args.sort_columns = [name.removesuffix("_bytes") for name in parsed_args.sort_columns]
        return [name.removesuffix("_bytes") for name in names]

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column for *item*."""
        return item[column] if isinstance(item, Mapping) else getattr(item, column)

    def row(self, parsed_args: argparse.Namespace, item: Any, names: Iterable[str]) -> tuple[Any, ...]:
        """Return the values of *item* for the chosen format."""
        if parsed_args.formatter == "table":
            return tuple(cell(name, self.value(item, name)) for name in names)
        return tuple(plain(self.value(item, name)) for name in names)


class ListCommand(_Columns, BaseCommand, Lister):
    """A command that shows several things."""

    brief: ClassVar[tuple[str, ...]]
    """The columns that are shown unless others are asked for."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser, with ``--long``."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--long", action="store_true", help="show all columns")
        return parser

    @abc.abstractmethod
    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Return what is to be listed."""

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Check the columns, then do the work."""
        self.settle(parsed_args)
        return super().run(parsed_args)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """Return names and rows."""
        wide = parsed_args.long or parsed_args.columns or parsed_args.sort_columns
        names = self.columns if wide else self.brief
        if not parsed_args.long and not parsed_args.columns and parsed_args.sort_columns:
            # cliff sorts by columns of the output only.
            names = tuple(name for name in self.columns if name in self.brief or name in parsed_args.sort_columns)
        return names, [self.row(parsed_args, item, names) for item in self.items(parsed_args)]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Iterable[Any]) -> int:
        """Write the list."""
        return super().produce_output(parsed_args, self.titles(parsed_args, column_names), data)


class ShowCommand(_Columns, BaseCommand, ShowOne):
    """A command that shows one thing."""

    @abc.abstractmethod
    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Do the work and return what is to be shown."""

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Check the columns, then do the work."""
        self.settle(parsed_args)
        return super().run(parsed_args)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """Return names and values."""
        item = self.item(parsed_args)
        return self.columns, self.row(parsed_args, item, self.columns)

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        """Write it."""
        return super().produce_output(parsed_args, self.titles(parsed_args, column_names), data)


def page_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--limit`` and ``--marker``."""
    parser.add_argument("--limit", type=_count, metavar="NUMBER", help=f"show at most so many {what}s")
    parser.add_argument("--marker", metavar="ID", help=f"begin after this {what}, the last one of the page before")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def key_values(pairs: Sequence[str]) -> dict[str, str]:
    """Return ``["k=v", …]`` as a dictionary.

    :raises volmig.errors.RequestInvalid: when a pair has no ``=`` or no key, or a key comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise errors.RequestInvalid(what=f"The property {pair!r}", reason="it is not of the form key=value")
        if key in found:
            raise errors.RequestInvalid(what=f"The property {key!r}", reason="it is given twice")
        found[key] = value
    return found
