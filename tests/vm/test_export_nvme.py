"""Volumes over NVMe/TCP: attached by os-brick through a target of the kernel on the same host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from volmig import errors
from volmig.connectors.nvmeof import NvmeofConnector

from .exports import (
    CONTENT,
    SLOWLY,
    assert_refused_after_a_write_on_its_host,
    here,
    make_exporter,
    targets,
    wait,
    yard,
)
from .support import MIB, loop_device, run

pytestmark = [
    pytest.mark.timeout(900),
    # os-brick brings eventlet along, which warns at each fork.
    pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    run("modprobe", "nvme_tcp")
    yield
    assert sessions() == []


def sessions() -> list[str]:
    names = Path("/sys/class/nvme-fabrics/ctl").glob("nvme*/subsysnqn")
    return sorted(path.read_text().strip() for path in names)


def test_a_volume_migrates_through_its_export(tmp_path: Path) -> None:
    with yard(tmp_path, "nvmet_tcp") as place:
        handle = place.bench.engine.migrate(
            place.volume.id, f"here@right#{place.right.name}", bandwidth_limit_bytes=SLOWLY
        )
        wait(lambda: sessions() or handle.status().phase.is_final)
        assert sessions(), handle.status().error_message
        handle.result(600)
        place.bench.assert_moved(place.volume, f"right#{place.right.name}", CONTENT)
        assert (sessions(), targets()) == ([], [])


def test_what_a_program_on_its_host_writes_meanwhile_is_found_out(tmp_path: Path) -> None:
    with yard(tmp_path, "nvmet_tcp") as place:
        assert_refused_after_a_write_on_its_host(place)
        assert (sessions(), targets()) == ([], [])


def test_killed_in_the_middle_it_goes_on_and_leaves_nothing(tmp_path: Path) -> None:
    with yard(tmp_path, "nvmet_tcp") as place:
        place.killed_in_the_middle(sessions)
        assert sessions()
        wait(lambda: [handle.result(600) for handle in place.bench.engine.recover()])
        place.bench.assert_moved(place.volume, f"right#{place.right.name}", CONTENT)
        assert (sessions(), targets()) == ([], [])


def test_an_address_that_is_not_this_hosts_leaves_nothing(tmp_path: Path) -> None:
    with yard(tmp_path, "nvmet_tcp", target_ip_address="192.0.2.1") as place:
        place.fails_and_leaves_nothing()


def test_an_export_that_was_left_is_found_and_goes_with_its_volume(tmp_path: Path) -> None:
    with yard(tmp_path, "nvmet_tcp") as place:
        place.found_and_deleted_with_its_export("nvmet_tcp")


def test_only_the_host_that_is_named_gets_in(tmp_path: Path) -> None:
    exporter = make_exporter(tmp_path, "nvmet_tcp")
    with loop_device(8 * MIB) as device:
        data = exporter.connection("1-a", device, here())["data"]
        try:
            stranger = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000001"
            at = ("-t", "tcp", "-a", "127.0.0.1", "-s", "4420")
            refused = subprocess.run(
                ["nvme", "connect", *at, "-n", data["target_nqn"], "-q", stranger], check=False, capture_output=True
            )
            assert refused.returncode != 0
            assert data["target_nqn"] not in run("nvme", "discover", *at, "-q", stranger, check=False)
            assert sessions() == []

            connector = NvmeofConnector()
            with pytest.raises(errors.AttachFailed, match=f"{data['volmig_serial']}, and the volume's is {'0' * 32}"):
                connector.connect({**data, "volmig_serial": "0" * 32})
            assert sessions() == []
            path = connector.connect(data)
            assert connector.connect(data) == path
            Path(path).write_bytes(b"written through the export")
            connector.disconnect(connector.release_data(data))
            connector.disconnect(connector.release_data(data))
            assert sessions() == []
        finally:
            exporter.terminate("1-a", here())
        exporter.terminate("1-a", here())
        assert targets() == []
        assert Path(device).read_bytes().startswith(b"written through the export")

        exporter.connection("1-b", device, here())
        assert make_exporter(tmp_path, "nvmet_tcp").exports() == ["1-b"]
        exporter.remove("1-b")
        exporter.remove("1-b")
        assert (list(exporter.exports()), [name for name in targets() if "hosts" not in name]) == ([], [])
