"""Opening a volume on this host, by what its driver says of the way to it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERFACE_VERSION = (1, 0)


class Connector(abc.ABC):
    """Opens volumes of one ``driver_volume_type``; an entry point of that name in ``volmig.connectors``."""

    interface_version: ClassVar[tuple[int, int]] = INTERFACE_VERSION

    @abc.abstractmethod
    def connect(self, data: Mapping[str, Any]) -> str:
        """Make the volume appear on this host and return its path. Repeating it gives the same path.

        :param data: the ``data`` of the driver's connection information.
        """

    @abc.abstractmethod
    def disconnect(self, data: Mapping[str, Any]) -> None:
        """Take back :meth:`connect`. Succeeds when there is no connection."""
