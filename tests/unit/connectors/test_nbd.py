"""The connector for exports by NBD over TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from volmig import errors, plugins
from volmig.connectors import Connector, nbd
from volmig.connectors.nbd import NbdConnector


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    place = tmp_path / "tls & more"
    place.mkdir()
    (place / "ca-cert.pem").touch()
    return place


def test_it_is_installed() -> None:
    assert plugins.load("volmig.connectors", "nbd", Connector).cls is NbdConnector  # type: ignore[type-abstract]


def test_the_address_gets_the_certificates_of_this_host(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "TLS_DIRECTORY", str(certificates))
    place = str(certificates).replace(" ", "%20").replace("&", "%26")
    connector = NbdConnector()
    assert connector.connect({"uri": "nbds://[::1]:7/a%2Fb", "format": "raw"}) == (
        f"nbds://[::1]:7/a%2Fb?tls-certificates={place}"
    )
    # What the other host says of a directory here is not believed.
    assert connector.connect({"uri": "nbds+unix:///x?socket=/s&tls-certificates=/theirs"}) == (
        f"nbds+unix:///x?socket=/s&tls-certificates={place}"
    )
    connector.disconnect({"uri": "nbds://[::1]:7/a"})


def test_those_that_the_backend_names_go_first(certificates: Path) -> None:
    data = {"uri": "nbds://host/x", "tls_certificates": str(certificates)}
    assert NbdConnector().connect(data).startswith("nbds://host/x?tls-certificates=/")
    assert dict(NbdConnector().release_data(data)) == data


def test_without_certificates_there_is_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "TLS_DIRECTORY", str(tmp_path))
    with pytest.raises(errors.PathUnusable, match=r"ca-cert\.pem"):
        NbdConnector().connect({"uri": "nbds://host/x"})


@pytest.mark.parametrize("uri", ["nbd://host/x", "nbd+unix:///?socket=/s", "http://host/", "/dev/sda", ""])
def test_nothing_but_tls_is_connected_to(certificates: Path, uri: str) -> None:
    with pytest.raises(errors.RequestInvalid, match="no other is connected to"):
        NbdConnector().connect({"uri": uri, "tls_certificates": str(certificates)})
