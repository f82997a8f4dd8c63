"""The program: global options, finding the command, and reporting what went wrong."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from cliff._argparse import ArgumentParser
from cliff.app import App
from cliff.commandmanager import CommandManager
from cliff.help import HelpCommand

from volmig import __version__
from volmig.cli import report
from volmig.cli.report import ExitStatus
from volmig.cli.streams import OutputLost, standard_streams

_DESCRIPTION = "Move storage volumes between any two backends: safely, verified, in full view."

_EXIT_STATUSES = """\
Exit status: 0 done; 2 the request is wrong; 3 the configuration is; 4 try again later; 5 storage failed or is
not as recorded; 6 a bug; 130 cancelled."""


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at the moment, so that log lines go above a live progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Help(HelpCommand):
    """Show help for a command, or list the commands"""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        if not parsed_args.cmd:
            self.app.print_help(self.app.stdout)  # type: ignore[attr-defined]
            return 0
        try:
            self.app.command_manager.find_command(parsed_args.cmd)
        except ValueError:
            return int(self.app.unknown_command(parsed_args.cmd))  # type: ignore[attr-defined]
        return super().take_action(parsed_args)


class VolmigApp(App):
    """The ``volmig`` command line."""

    NAME = "volmig"

    def __init__(self) -> None:
        super().__init__(
            description=_DESCRIPTION,
            version=__version__,
            command_manager=CommandManager("volmig.cli"),
            deferred_help=True,
        )
        self.command_manager.add_command("help", _Help)

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, Any] | None = None
    ) -> argparse.ArgumentParser:
        """Return the parser of the global options, which may stand anywhere on the command line."""
        # Without abbreviations: a command's own options would be taken for shortened global ones.
        parser = ArgumentParser(
            prog=self.NAME,
            usage=f"{self.NAME} [global options] <command> [options]",
            description=description,
            add_help=False,
            allow_abbrev=False,
        )
        parser.add_argument("--version", action="version", version=f"{self.NAME} {version}", help="show the version")
        parser.add_argument(
            "--config-file",
            action="append",
            metavar="FILE",
            help="configuration file; may be repeated, and later files win. Without it: volmig.conf in ~/.volmig, ~, "
            "/etc/volmig or /etc",
        )
        loudness = parser.add_mutually_exclusive_group()
        loudness.add_argument(
            "-v",
            "--verbose",
            action="count",
            dest="verbose_level",
            default=1,
            help="say more; twice for all log lines",
        )
        loudness.add_argument(
            "-q", "--quiet", action="store_const", dest="verbose_level", const=0, help="only results and errors"
        )
        parser.add_argument("--debug", action="store_true", help="show all log lines, and the traceback of an error")
        return parser

    def run(self, argv: list[str]) -> int:
        """Run one command and return the exit status; errors are reported on stderr."""
        debug = "--debug" in argv
        try:
            self.options, remainder = self.parser.parse_known_args(argv)
            debug = self.options.debug
            with self._logging():
                return self._dispatch(remainder)
        except OutputLost:
            raise
        except KeyboardInterrupt as error:
            return report.report(error, self.stderr, debug=debug)
        except Exception as error:  # noqa: BLE001 - the last place where an error can be shown
            return report.report(error, self.stderr, debug=debug)

    def _dispatch(self, argv: list[str]) -> int:
        if not argv:
            self.print_help(self.stderr)
            return ExitStatus.USAGE
        if argv[0] in ("-h", "--help"):
            self.print_help(self.stdout)
            return ExitStatus.SUCCESS
        return self.run_subcommand(argv)

    def run_subcommand(self, argv: list[str]) -> int:
        """Find the command that *argv* begins with, and run it; its errors are raised."""
        try:
            factory, name, arguments = self.command_manager.find_command(argv)
        except ValueError:
            return self.unknown_command(argv)
        command = factory(self, self.options, cmd_name=name)
        parsed = command.get_parser(f"{self.NAME} {name}").parse_args(arguments)
        return command.run(parsed)

    def unknown_command(self, argv: Sequence[str]) -> ExitStatus:
        """Say that there is no such command, and which one may have been meant."""
        known = sorted(name for name, _ in self.command_manager)
        words = []
        for word in argv:
            if word.startswith("-"):
                break
            words.append(word)
        typed = " ".join(words)
        if not words:
            said = report.lines(f"There is no global option {argv[0]!r}.", "unknown-option", "See `volmig --help`.")
        elif group := [name for name in known if name.split()[: len(words)] == words]:
            hint = f"The commands for it: {', '.join(group)}."
            said = report.lines(f"{typed!r} alone is not a command.", "unknown-command", hint)
        else:
            near = difflib.get_close_matches(" ".join(words[:3]), known, n=3, cutoff=0.8)
            near = near or difflib.get_close_matches(" ".join(words[:2]), known, n=3, cutoff=0.5)
            near = near or [name for name in known if name.split()[0] == words[0]]
            near = near or difflib.get_close_matches(words[0], known, n=3, cutoff=0.5)
            hint = f"Did you mean: {', '.join(near)}?" if near else "`volmig --help` lists the commands."
            said = report.lines(f"There is no command {typed!r}.", "unknown-command", hint)
        self.stderr.write("\n".join(said) + "\n")
        return ExitStatus.USAGE

    def print_help(self, stream: TextIO) -> None:
        """Write the global options, the commands and the exit statuses."""
        self.parser.print_help(stream)
        commands: list[tuple[str, str]] = []
        for name, entry_point in sorted(self.command_manager):
            description = entry_point.load()(self, None, cmd_name=name).get_description()
            commands.append((name, description.split("\n")[0].rstrip(".")))
        width = max(len(name) for name, _ in commands)
        stream.write("\ncommands:\n")
        stream.writelines(f"  {name:<{width}}  {line}\n" for name, line in commands)
        stream.write(f"\n`volmig help <command>` or `volmig <command> --help` tells more.\n{_EXIT_STATUSES}\n")

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Send log lines to stderr: warnings, with ``-v`` what happens, with ``-vv`` or ``--debug`` everything."""
        level = {0: logging.ERROR, 1: logging.WARNING, 2: logging.INFO}.get(self.options.verbose_level, logging.DEBUG)
        handler = _Stderr()
        if self.options.debug or level == logging.DEBUG:
            level = logging.DEBUG
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        else:
            handler.setFormatter(logging.Formatter("volmig: %(levelname)s: %(message)s"))
            # It tells of missing plugins once more, which are an error with a line of its own.
            handler.addFilter(lambda record: not record.name.startswith("stevedore"))
        handler.setLevel(level)
        root = logging.getLogger()
        before = root.level
        root.addHandler(handler)
        root.setLevel(level)
        self._handler = handler
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before)

    def log_for_service(self) -> None:
        """Let a command that stays write what happens, with the time; with ``-q`` errors only."""
        if self.options.verbose_level:
            level = min(self._handler.level, logging.INFO)
            self._handler.setLevel(level)
            logging.getLogger().setLevel(level)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (that of the process unless given) and return the exit status."""
    try:
        with standard_streams():
            return int(VolmigApp().run(list(sys.argv[1:] if argv is None else argv)))
    except KeyboardInterrupt as error:
        return report.report(error, sys.stderr)
    except OutputLost as error:
        if error.is_closed_pipe:
            return ExitStatus.CLOSED_PIPE
        said = report.lines(f"The output could not be written: {error.strerror}.", "output-lost", "")
        if sys.stderr is not None:
            sys.stderr.write("\n".join(said) + "\n")
        return ExitStatus.OPERATOR
