"""What shows the volumes of one backend to other hosts, whatever the protocol."""

from __future__ import annotations

import abc
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from volmig import errors
from volmig.drivers.base import ConnectionInfo, ConnectorProperties

_VOLUME_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Exporter(abc.ABC):
    """Makes targets for volumes, gives single hosts access to them, and takes both back.

    Every call may be repeated, and may follow one that was cut off anywhere: what counts is what the system has, and
    nothing is remembered elsewhere.

    :param options: values of :func:`volmig.drivers.targets.options.target_options`.
    :param backend: name of the backend.
    :param host: name of this host, as in ``host@backend#pool``.
    :param prefix: the command by which programs are run as root.
    """

    def __init__(self, options: Mapping[str, Any], *, backend: str, host: str, prefix: Sequence[str] = ()) -> None:
        self.options = options
        self.backend = backend
        self.host = host
        self.prefix = tuple(prefix)

    @abc.abstractmethod
    def connection(self, volume_id: str, device: str, connector: ConnectorProperties) -> ConnectionInfo:
        """Show a device to the host that *connector* describes, and to no other, and say how it is reached.

        Repeated, it gives the same answer. The answer holds the secret of that host; it is for its connector only.

        :raises volmig.errors.HostNotIdentified: when the host has no name in the protocol.
        :raises volmig.errors.StorageBusy: when somebody on this host holds the device; nothing was changed.
        :raises volmig.errors.ExportFailed: when the system refuses it.
        """

    @abc.abstractmethod
    def terminate(self, volume_id: str, connector: ConnectorProperties) -> None:
        """Take the access of one host back; the target goes with its last one. Succeeds when there is none."""

    @abc.abstractmethod
    def remove(self, volume_id: str) -> None:
        """Remove whatever there is of a volume, half-made or not. Succeeds when there is nothing.

        :raises volmig.errors.VolumeInUse: when a host is seen to use it; nothing was changed. Not every protocol shows
            that.
        """

    @abc.abstractmethod
    def exports(self) -> Sequence[str]:
        """Return the ids of the backend's volumes of which there is something, so that leftovers can be found."""

    @property
    def tag(self) -> str:
        """What tells the targets of this backend from those of others: a volume that migrates may have an object of
        the same name in two of them at once, on one host or on two.
        """
        return hashlib.sha256(f"{self.host}@{self.backend}".encode()).hexdigest()[:8]

    def target_name(self, prefix: str, volume_id: str) -> str:
        """Return the qualified name of a volume's target.

        :raises volmig.errors.ExportFailed: when the id cannot be a part of it.
        """
        if not _VOLUME_ID.fullmatch(volume_id):
            raise self.failed(volume_id, "its id cannot be a part of a target's name")
        return f"{prefix}volume-{volume_id}.{self.tag}"

    def volume_of(self, prefix: str, name: str) -> str | None:
        """Return the id of the volume whose target has a name; None when it is none of this backend."""
        found = re.fullmatch(rf"{re.escape(prefix)}volume-({_VOLUME_ID.pattern})\.{self.tag}", name)
        return found[1] if found else None

    def serial(self, volume_id: str) -> str:
        """Return 32 hexadecimal digits by which hosts know the device, whatever its path."""
        return hashlib.sha256(f"{self.host}@{self.backend}/{volume_id}".encode()).hexdigest()[:32]

    def failed(self, volume_id: str, reason: object) -> errors.ExportFailed:
        """Return the error that says why a volume cannot be exported."""
        return errors.ExportFailed(
            volume=volume_id, backend=self.backend, protocol=self.options["target_protocol"], reason=reason
        )
