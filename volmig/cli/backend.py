"""``volmig backend …`` and ``volmig pool …``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from volmig.cli.base import ListCommand, ShowCommand
from volmig.cli.report import printable

_BACKEND_COLUMNS = (
    "name",
    "address",
    "state",
    "down_reason",
    "driver",
    "driver_version",
    "vendor_name",
    "storage_protocol",
    "volume_backend_name",
    "capabilities",
    "pools",
    "calls_hanging",
)


def _state(up: bool) -> str:
    return "up" if up else "down"


class _Backend:
    """How a backend's columns are filled."""

    def value(self, item: Any, column: str) -> Any:
        """Return a backend's value; its pools by their addresses."""
        if column == "state":
            return _state(item.up)
        if column == "pools":
            return [pool.address for pool in item.pools]
        return getattr(item, column)


class BackendList(_Backend, ListCommand):
    """List the enabled backends"""

    columns = _BACKEND_COLUMNS
    brief = ("name", "driver", "state", "down_reason", "pools")

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Return the backends."""
        with self.open_engine() as engine:
            return engine.list_backends()


class BackendShow(_Backend, ShowCommand):
    """Show one backend: its driver, its state, what it offers and its pools"""

    columns = _BACKEND_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backend", metavar="BACKEND", help="name of the backend: its group in the configuration")
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Return the backend."""
        with self.open_engine() as engine:
            return engine.show_backend(parsed_args.backend)


class PoolList(ListCommand):
    """List the pools, which volumes are created in and moved to, with their capacity"""

    columns = (
        "address",
        "state",
        "total_capacity_bytes",
        "free_capacity_bytes",
        "available_bytes",
        "provisioned_capacity_bytes",
        "reserved_bytes",
        "thin_provisioning",
        "read_only",
    )
    brief = ("address", "state", "total_capacity_bytes", "free_capacity_bytes", "available_bytes")

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Return the pools."""
        with self.open_engine() as engine:
            backends = engine.list_backends()
        for backend in backends:
            if not backend.up:
                reason = printable(backend.down_reason) or "no reason was given"
                self.note(f"The pools of backend {backend.name!r} are missing, since it is down: {reason}")
        return [pool for backend in backends for pool in backend.pools]

    def value(self, item: Any, column: str) -> Any:
        """Return a pool's value."""
        return _state(item.up) if column == "state" else super().value(item, column)
