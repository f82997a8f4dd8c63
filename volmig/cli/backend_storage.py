"""``volmig backend setup`` and ``volmig backend teardown``: the storage of drivers that make their own."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from volmig import errors
from volmig.cli.backend import BackendShow
from volmig.cli.base import BaseCommand


class BackendSetup(BackendShow):
    """Make the storage of a backend as it is configured, or find it again, and show the backend

    For drivers that make their own storage, such as lvm with lvm_loopback_file. What is there already stays as it is.
    """

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Set it up and return the backend."""
        with self.open_engine() as engine:
            return engine.setup_backend(parsed_args.backend)


class BackendTeardown(BaseCommand):
    """Let go of the storage that 'backend setup' has made; with --delete-data, delete it

    Without --delete-data all data stays, and 'backend setup' or any other use of the backend finds it again. What is in
    use is never taken down, and nothing is deleted while a volume in it is on record.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backend", metavar="BACKEND", help="name of the backend: its group in the configuration")
        parser.add_argument("--delete-data", action="store_true", help="delete the storage with all data in it")
        parser.add_argument("--yes", action="store_true", help="do not ask before anything is deleted")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Ask, if need be, and take it down."""
        name = parsed_args.backend
        if parsed_args.delete_data and not parsed_args.yes:
            self._require_consent(name)
        with self.open_engine() as engine:
            engine.teardown_backend(name, delete_data=parsed_args.delete_data)
        if parsed_args.delete_data:
            self.note(f"The storage of backend {name!r} is deleted.")
        else:
            again = self.command("backend", "setup", name)
            self.note(
                f"The storage of backend {name!r} is taken down; its data is kept. `{again}` brings it back, and so"
            )
            self.note("does any other use of it: take it out of enabled_backends where it is to stay down.")

    def _require_consent(self, name: str) -> None:
        """Ask on the terminal. :raises volmig.errors.RequestInvalid: when there is none, or the answer is no."""
        refused = "--delete-data"
        if not sys.stdin.isatty():
            raise errors.RequestInvalid(
                what=refused, reason="there is no terminal to ask on", hint="Add --yes when all data may be deleted."
            )
        self.app.stderr.write(f"All data of backend {name!r} will be deleted. Type the backend's name to go on: ")
        self.app.stderr.flush()
        if sys.stdin.readline().strip() != name:
            raise errors.RequestInvalid(
                what=refused, reason="that is not the backend's name", hint="Nothing was changed."
            )
