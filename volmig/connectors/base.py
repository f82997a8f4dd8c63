"""Opening a volume on this host, by what its driver says of the way to it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERFACE_VERSION = (1, 0)

_SECRET_WORDS = ("password", "passphrase", "secret", "dhchap", "psk", "token", "private_key", "keyring", "credential")
"""Words in the keys of connection data whose values are never recorded."""


class Connector(abc.ABC):
    """Opens volumes of one ``driver_volume_type``; an entry point of that name in ``volmig.connectors``."""

    interface_version: ClassVar[tuple[int, int]] = INTERFACE_VERSION
    leaves_connection: ClassVar[bool] = True
    """Whether what :meth:`connect` makes outlives the process: after a crash another one has to take it back."""

    @abc.abstractmethod
    def connect(self, data: Mapping[str, Any]) -> str:
        """Make the volume appear on this host and return its path. Repeating it gives the same path.

        :param data: the ``data`` of the driver's connection information.
        """

    @abc.abstractmethod
    def disconnect(self, data: Mapping[str, Any]) -> None:
        """Take back :meth:`connect`, or what there is of one that was cut off. What was written is on the storage then.
        Succeeds when there is no connection.

        :param data: the same ``data``, or what :meth:`release_data` made of it.
        """

    def release_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what :meth:`disconnect` has to know, as JSON values without any secret.

        It is recorded before :meth:`connect`, so that another process can disconnect when this one is gone. This
        default leaves out all that is named like a secret.
        """
        return without_secrets(data)


def without_secrets(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return connection data without the entries that are named like secrets, at any depth."""
    return {key: _clean(value) for key, value in data.items() if not _is_secret(key)}


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    return value


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_WORDS)
