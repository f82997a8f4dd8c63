"""The NBD client with the servers that people run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.transfer.fakes import nothing_left
from volmig import errors
from volmig.transfer.nbd.end import NbdEnd

from .images import CONTENT, MIB, nbdkit, qemu_nbd, read_all, served

SERVERS = [
    (nbdkit, ()),
    (qemu_nbd, ()),
    (qemu_nbd, ("--discard=unmap", "--detect-zeroes=unmap")),
]


def connect(address: str, *, writes: bool = True) -> NbdEnd:
    return NbdEnd.connect(address, reads=True, writes=writes, is_destination=writes)


@pytest.mark.parametrize(("server", "arguments"), SERVERS)
def test_reads_writes_and_knows_holes(tmp_path: Path, server: object, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
        file.seek(5 * MIB)
        file.write(CONTENT[:MIB])
    expected = bytearray(path.read_bytes())
    with server(path, *arguments) as address, nothing_left(), connect(address) as end:  # type: ignore[operator]
        assert end.size_bytes == 16 * MIB
        assert read_all(end) == expected
        assert list(end.extents(16 * MIB)) == [(5 * MIB, 6 * MIB)]
        end.survey(0, 16 * MIB)
        assert end.known_zero(0, 5 * MIB)
        assert not end.known_zero(0, 5 * MIB + 1)
        for offset, length in ((1, 1), (4095, 2), (100, 70_000), (16 * MIB - 3, 3), (8 * MIB, 3 * MIB)):
            data, done = memoryview(CONTENT[:length]), 0
            while done < length:
                done += end.write_some(data[done:], offset + done)
            expected[offset : offset + length] = CONTENT[:length]
        assert end.zero(9 * MIB, MIB)
        expected[9 * MIB : 10 * MIB] = bytes(MIB)
        end.flush()
        assert read_all(end) == expected
    assert path.read_bytes() == expected


def test_a_server_with_large_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    socket = tmp_path / "sock"
    command = [
        "nbdkit", "-f", "-U", str(socket), "--filter=blocksize-policy", "file", str(path),
        "blocksize-minimum=4096", "blocksize-error-policy=error",
    ]  # fmt: skip
    with served(*command, socket=socket) as address, connect(address) as end:
        assert end.export.block_bytes == 4096
        view = memoryview(bytearray(1000))
        assert end.read_some(view, 4000) == 1000
        assert view == CONTENT[4000:5000]
        done = end.write_some(memoryview(b"x" * 1000), 4000)
        done += end.write_some(memoryview(b"x" * (1000 - done)), 4000 + done)
        assert done == 1000
        end.flush()
        assert path.read_bytes() == CONTENT[:4000] + b"x" * 1000 + CONTENT[5000:]


def test_exports_that_cannot_serve(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with nbdkit(path, "-r") as address, nothing_left():
        with pytest.raises(errors.RequestInvalid, match="read-only"):
            connect(address)
        with connect(address, writes=False) as end:
            assert read_all(end) == CONTENT
    (tmp_path / "disk.sock").unlink(missing_ok=True)
    with qemu_nbd(path, "--export-name=one") as address, nothing_left():
        with pytest.raises(errors.TransferFailed, match="no such export"):
            connect(address.replace("///", "///two"))
        with connect(address.replace("///", "///one")) as end:
            assert read_all(end) == CONTENT
