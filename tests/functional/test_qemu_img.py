"""The engine qemu-img, and images as ends, with the real programs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.unit.transfer.fakes import children, nothing_left
from volmig import errors
from volmig.transfer.base import CopyOptions
from volmig.transfer.control import Control
from volmig.transfer.engines.qemu_img import QemuImgEngine
from volmig.transfer.images.chains import open_chain
from volmig.transfer.images.end import open_image

from .images import CONTENT, MIB, content_of, job, make_image, read_all, run

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
BOTH = list(itertools.product(FORMATS, FORMATS))


def view(path: Path, format_name: str, **options: object) -> bytes:
    with open_image(path, format_name, options=CopyOptions(**options), is_destination=True) as end:  # type: ignore[arg-type]
        return read_all(end)


@pytest.mark.parametrize(("source_format", "destination_format"), BOTH)
def test_every_format_to_every_other(tmp_path: Path, source_format: str, destination_format: str) -> None:
    source = make_image(tmp_path / "source", source_format)
    before = source.read_bytes()
    destination = tmp_path / "destination"
    destination.write_bytes(b"\xaa" * 20 * MIB if destination_format == "raw" else b"")
    inode = destination.stat().st_ino
    with nothing_left():
        outcome = QemuImgEngine().run(
            job(
                source,
                destination,
                len(CONTENT),
                source_format=source_format,
                destination_format=destination_format,
            )
        )
        assert outcome.means.startswith("qemu-img convert")
        found = destination.read_bytes() if destination_format == "raw" else view(destination, destination_format)
    assert found[: len(CONTENT)] == CONTENT
    assert found[len(CONTENT) :] == (b"\xaa" * 4 * MIB if destination_format == "raw" else b"")
    assert destination.stat().st_ino == inode
    assert source.read_bytes() == before
    if destination_format != "raw":
        info = json.loads(run("qemu-img", "info", "--output=json", "-f", destination_format, destination))
        assert info["virtual-size"] == len(CONTENT)
        run("qemu-img", "compare", "-f", source_format, "-F", destination_format, source, destination)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_part_of_an_image_onto_a_larger_device_of_garbage(tmp_path: Path, format_name: str) -> None:
    source = make_image(tmp_path / "source", format_name)
    destination = tmp_path / "destination"
    destination.write_bytes(b"\xaa" * 8 * MIB)
    QemuImgEngine().run(job(source, destination, 5 * MIB + 512, source_format=format_name))
    expected = CONTENT[: 5 * MIB + 512]
    assert destination.read_bytes() == expected + b"\xaa" * (8 * MIB - len(expected))


@pytest.mark.parametrize("format_name", FORMATS[1:])
def test_a_file_of_no_whole_sectors_becomes_an_image(tmp_path: Path, format_name: str) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(CONTENT[:100_001])
    destination.touch()
    QemuImgEngine().run(job(source, destination, 100_001, destination_format=format_name))
    assert view(destination, format_name) == CONTENT[:100_001].ljust(100_352, b"\0")


def test_a_chain_is_flattened(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    bottom = make_image(tmp_path / "bases" / "bottom", "raw")
    middle, top = tmp_path / "bases" / "middle, with=signs", tmp_path / "top"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", bottom, "-F", "raw", middle)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", top)
    expected = CONTENT[:MIB] + b"\7" * MIB + CONTENT[2 * MIB :]
    options = {"source_format": "qcow2", "backing_directories": (str(tmp_path / "bases"),)}
    destination = tmp_path / "destination"
    for format_name in ("qcow2", "raw"):
        destination.write_bytes(b"" if format_name == "qcow2" else bytes(len(CONTENT)))
        QemuImgEngine().run(job(top, destination, len(CONTENT), destination_format=format_name, **options))
        assert content_of(destination, format_name) == expected
        if format_name == "qcow2":
            info = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", destination))
            assert "backing-filename" not in info
    assert view(top, "qcow2", **options) == expected
    with open_image(top, "qcow2", options=CopyOptions(**options), is_destination=False) as end:  # type: ignore[arg-type]
        before = end.version()
        assert end.is_still_in_place()
        with bottom.open("r+b") as file:
            file.write(b"x")
        assert end.version() != before
        end.settle()
        shutil.copy(bottom, tmp_path / "copy")
        (tmp_path / "copy").replace(bottom)
        assert not end.is_still_in_place()
    with pytest.raises(errors.UnsupportedFormat, match="outside"):
        open_image(top, "qcow2", options=CopyOptions(), is_destination=False)


def test_images_that_reach_for_other_files(tmp_path: Path) -> None:
    secret, volumes = tmp_path / "secret", tmp_path / "volumes"
    volumes.mkdir()
    make_image(secret, "raw", b"secret".ljust(MIB, b"!"))
    forged = volumes / "forged"
    attacks = (
        ("qcow2", ("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", forged)),
        ("qcow2", ("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "../secret", "-F", "raw", forged, "1M")),
        (
            "qcow2",
            ("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", forged, "1M"),
        ),
        ("vmdk", ("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", forged, "1M")),
        ("vmdk", ("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", forged, "1M")),
    )
    content = secret.read_bytes()
    destination = tmp_path / "destination"
    for format_name, command in attacks:
        run(*command)
        secret.write_bytes(content)
        destination.write_bytes(bytes(MIB))
        with nothing_left():
            for call in (
                lambda f=format_name: QemuImgEngine().run(job(forged, destination, MIB, source_format=f)),
                lambda f=format_name: open_image(forged, f, options=CopyOptions(), is_destination=False),
                lambda: QemuImgEngine().run(job(forged, destination, MIB, destination_format="qcow2")),
            ):
                with pytest.raises(errors.UnsupportedFormat):
                    call()
        assert destination.read_bytes() == bytes(MIB)
        for path in volumes.iterdir():
            path.unlink()


def test_what_a_header_says_after_the_check_is_not_followed(tmp_path: Path) -> None:
    """The chain is fixed when it is checked; a header that is changed then leads nowhere."""
    base, top = make_image(tmp_path / "base", "raw"), tmp_path / "top"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top, cwd=tmp_path)
    (tmp_path / "evil").write_bytes(b"evil" * (4 * MIB))
    with open_chain(str(top), "qcow2", CopyOptions()) as chain:
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", tmp_path / "evil", "-F", "raw", top)
        base.rename(tmp_path / "elsewhere")
        shown = tmp_path / "shown"
        command = ["qemu-img", "convert", "-O", "raw", chain.address(), str(shown)]
        subprocess.run(command, check=True, pass_fds=chain.descriptors, timeout=60)
    assert shown.read_bytes() == CONTENT


def test_reading_an_image_in_several_threads(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "qcow2")
    with nothing_left(), open_image(image, "qcow2", options=CopyOptions(), is_destination=False) as end:
        assert end.concurrency == 4
        assert end.size_bytes == len(CONTENT)
        data = bytearray(len(CONTENT))
        views = memoryview(data)

        def part(index: int) -> None:
            offset = index * 4 * MIB
            while offset < (index + 1) * 4 * MIB:
                offset += end.read_some(views[offset : (index + 1) * 4 * MIB], offset)

        threads = [threading.Thread(target=part, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert data == CONTENT
        covered = sum(stop - start for start, stop in end.extents(end.size_bytes))
        assert covered < 8 * MIB
        with pytest.raises(OSError, match="reading only"):
            end.write_some(memoryview(b"x"), 0)


def test_an_image_that_the_program_cannot_read(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "qcow2")
    with image.open("r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 8)
    with nothing_left(), pytest.raises(errors.TransferFailed, match="qemu-nbd") as raised:
        open_image(image, "qcow2", options=CopyOptions(), is_destination=False)
    assert raised.value.fields["path"] == str(image)
    assert "/proc/self/fd" not in raised.value.message
    destination = tmp_path / "destination"
    destination.write_bytes(bytes(MIB))
    with nothing_left(), pytest.raises(errors.TransferFailed, match="qemu-img"):
        QemuImgEngine().run(job(image, destination, MIB, source_format="qcow2"))


def test_nothing_is_left_when_the_reader_is_killed(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "qcow2")
    script = """
import sys, time
from volmig.transfer.base import CopyOptions
from volmig.transfer.images.end import open_image
open_image(sys.argv[1], "qcow2", options=CopyOptions(), is_destination=False,
           on_process=lambda helper: print(helper.pid, flush=True))
print("open", flush=True)
time.sleep(60)
"""
    directory = tmp_path / "tmp"
    directory.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(image)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(directory)},
    ) as reader:
        assert reader.stdout is not None
        pid = int(reader.stdout.readline())
        assert reader.stdout.readline() == "open\n"
        reader.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert list(directory.iterdir()) == []


def test_cancel_and_limit(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(CONTENT[: 3 * MIB])
    destination.touch()
    control = Control(limit_bytes=10 * MIB)
    failed: list[BaseException] = []

    def copy() -> None:
        try:
            QemuImgEngine().run(job(source, destination, 192 * MIB, control=control, destination_format="qcow2"))
        except errors.TransferCancelled as exc:
            failed.append(exc)

    thread = threading.Thread(target=copy)
    begun = time.monotonic()
    thread.start()
    while destination.stat().st_blocks * 512 <= 24 * MIB:
        assert time.monotonic() - begun < 60
        time.sleep(0.05)
    taken, seconds = destination.stat().st_blocks * 512, time.monotonic() - begun
    # Without a limit all 192 MiB are there by then. What a busy machine lets through at once is made up for later.
    assert taken < seconds * 10 * MIB + 24 * MIB
    asked = time.monotonic()
    control.cancel()
    thread.join(10)
    assert time.monotonic() - asked < 3
    assert failed
    assert children() == set()


def test_a_file_system_without_direct_io(tmp_path: Path) -> None:
    source = make_image(tmp_path / "source", "qcow2")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        destination = Path(directory) / "destination"
        destination.touch()
        QemuImgEngine().run(job(source, destination, len(CONTENT), source_format="qcow2", destination_format="qcow2"))
        assert view(destination, "qcow2") == CONTENT


def test_a_full_disk(tmp_path: Path) -> None:
    source = make_image(tmp_path / "source", "raw")
    script = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", sys.argv[1]], check=True)
from pathlib import Path
from tests.functional.images import job
from volmig import errors
from volmig.transfer.engines.qemu_img import QemuImgEngine
destination = Path(sys.argv[1]) / "destination"
destination.touch()
try:
    QemuImgEngine().run(job(sys.argv[2], destination, 16 << 20, destination_format="qcow2"))
except errors.DiskFull as exc:
    print(exc.fields["path"])
"""
    (tmp_path / "small").mkdir()
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    root = Path(__file__).parents[2]
    found = run("unshare", "--mount", *user, sys.executable, "-c", script, tmp_path / "small", source, cwd=root)
    assert found.strip() == str(tmp_path / "small" / "destination")
