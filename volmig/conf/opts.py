"""The options as oslo-config-generator lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from stevedore.driver import DriverManager

from volmig.conf import backend, core, database, migration, transfer

GROUPS = (core, database, migration, transfer)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return (group, options) pairs; a backend's group stands as ``example_backend``, with the file driver's."""
    file_driver: Any = DriverManager("volmig.drivers", "file", invoke_on_load=False).driver
    listed: list[tuple[str, Sequence[cfg.Opt]]] = [(module.GROUP, module.OPTIONS) for module in GROUPS]
    listed.append(("example_backend", (*backend.OPTIONS, *file_driver.get_driver_options())))
    return listed
