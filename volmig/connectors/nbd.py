"""The connector for volumes that another host exports by NBD over TLS."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volmig import errors
from volmig.connectors.base import Connector

TLS_DIRECTORY = "/etc/volmig/tls"
"""Where this host has its certificates: ``ca-cert.pem``, ``client-cert.pem`` and ``client-key.pem``."""


class NbdConnector(Connector):
    """``data`` holds ``uri``, which begins with ``nbds``: nothing is attached, the copy itself connects to it.

    The certificates are this host's own, in ``/etc/volmig/tls``, unless ``data`` names their directory
    (``tls_certificates``), which a backend does for the host that it is on.
    """

    leaves_connection = False

    def connect(self, data: Mapping[str, Any]) -> str:
        """Return the address with this host's certificates.

        :raises volmig.errors.PathUnusable: when this host has none.
        :raises volmig.errors.RequestInvalid: when the address is not one with TLS.
        """
        uri = str(data["uri"])
        parts = urllib.parse.urlsplit(uri)
        if parts.scheme not in ("nbds", "nbds+unix"):
            raise errors.RequestInvalid(
                what=uri, reason="it is no address of NBD over TLS, and no other is connected to"
            )
        directory = str(data.get("tls_certificates") or TLS_DIRECTORY)
        if not Path(directory, "ca-cert.pem").exists():
            raise errors.PathUnusable(
                path=directory,
                reason="there is no ca-cert.pem in it, which NBD over TLS needs",
                hint="Put ca-cert.pem, client-cert.pem and client-key.pem there, for the user that volmig runs as.",
            )
        given = [item for item in parts.query.split("&") if item and not item.startswith("tls-certificates=")]
        query = "&".join([*given, f"tls-certificates={urllib.parse.quote(directory, safe='/')}"])
        return f"{parts.scheme}://{parts.netloc}{parts.path}?{query}"

    def disconnect(self, data: Mapping[str, Any]) -> None:
        """Do nothing: connections last no longer than the copy that made them."""
