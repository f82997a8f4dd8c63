"""The options as oslo-config-generator lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from stevedore.driver import DriverManager

from volmig.conf import backend, core, database, migration, transfer

GROUPS = (core, database, migration, transfer)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return (group, options) pairs; a backend's group stands as ``example_backend``, with the file driver's options.

    What other drivers have beside the options of every backend stands in a group for each.
    """
    listed: list[tuple[str, Sequence[cfg.Opt]]] = [(module.GROUP, module.OPTIONS) for module in GROUPS]
    listed.append(("example_backend", (*backend.OPTIONS, *_options_of("file"))))
    listed.append(("example_lvm_backend", _options_of("lvm")))
    return listed


def _options_of(driver: str) -> Sequence[cfg.Opt]:
    loaded: Any = DriverManager("volmig.drivers", driver, invoke_on_load=False).driver
    options: Sequence[cfg.Opt] = loaded.get_driver_options()
    return options
