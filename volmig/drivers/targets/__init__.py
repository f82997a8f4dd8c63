"""Showing block devices to other hosts, for any driver whose volumes are block devices of this host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volmig.drivers.targets.base import Exporter

__all__ = ["exporter"]


def exporter(options: Mapping[str, Any], *, backend: str, host: str, prefix: Sequence[str] = ()) -> Exporter | None:
    """Return what exports the volumes of a backend; None when its ``target_protocol`` is ``none``.

    :param options: values of :func:`volmig.drivers.targets.options.target_options`, by name.
    :param prefix: the command by which programs are run as root, such as ``sudo -n``; empty for none.
    """
    protocol = options["target_protocol"]
    # Each is imported only where it is used.
    if protocol == "iscsi":
        from volmig.drivers.targets.iscsi import IscsiExporter

        return IscsiExporter(options, backend=backend, host=host, prefix=prefix)
    if protocol == "nvmet_tcp":
        from volmig.drivers.targets.nvmet import NvmetExporter

        return NvmetExporter(options, backend=backend, host=host, prefix=prefix)
    if protocol == "nbd":
        from volmig.drivers.targets.nbd import NbdExporter

        return NbdExporter(options, backend=backend, host=host, prefix=prefix)
    return None
