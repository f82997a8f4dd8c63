"""Images as ends, with a program that stands in for qemu-nbd: it shows the file itself as its content."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from volmig import errors
from volmig.transfer.base import CopyOptions, HelperProcess
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.images import end as images
from volmig.transfer.images.end import open_image

from . import programs
from .fakes import children, nothing_left
from .image_headers import make, qcow2


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the program; return the directory for temporary files."""
    programs.install(tmp_path / "bin", qemu_nbd=programs.QEMU_NBD)
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("VOLMIG_TEST_ROOT", str(Path(__file__).parents[3]))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_shows_the_content_and_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    image = make(tmp_path / "image", qcow2())
    started: list[HelperProcess] = []
    with nothing_left():
        end = open_image(image, "qcow2", options=CopyOptions(), is_destination=True, on_process=started.append)
        with end:
            assert end.name == str(image)
            assert end.is_destination
            assert end.size_bytes == 65536
            assert end.concurrency == 4
            assert started[0].pid in children()
            assert list(temporary.iterdir()) == []
            view = memoryview(bytearray(65536))
            assert end.read_some(view, 0) == 65536
            assert view == image.read_bytes()
            assert list(end.extents(65536)) == [(0, 4096)]
            assert not end.zero(0, 4096)
            assert not end.zeroes_cheaply
            with pytest.raises(OSError, match="reading only"):
                end.write_some(view, 0)
            end.flush()
            end.drop_cache()
            end.settle()
        end.close()


def test_identity_and_version_are_those_of_the_files(tmp_path: Path) -> None:
    base = make(tmp_path / "base", bytes(4096))
    image = make(tmp_path / "image", qcow2(backing="base", backing_format="raw"))
    with open_image(image, "qcow2", options=CopyOptions(), is_destination=False) as end:
        with FileEnd(str(image), os.O_RDONLY, is_destination=False) as file:
            assert end.identity == file.identity
            assert end.version() != file.version()
        for path in (base, image):
            before = end.version()
            os.utime(path, ns=(1, 1))
            assert end.version() != before
            assert end.is_still_in_place()
        base.rename(tmp_path / "elsewhere")
        assert not end.is_still_in_place()


def test_what_is_refused_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[HelperProcess] = []
    for content in (bytes(65536), qcow2(backing="/etc/passwd", backing_format="raw"), qcow2(features=4)):
        image = make(tmp_path / "image", content)
        with nothing_left(), pytest.raises(errors.UnsupportedFormat):
            open_image(image, "qcow2", options=CopyOptions(), is_destination=False, on_process=started.append)
    assert started == []


@pytest.mark.parametrize(("mode", "reason"), [("broken", "Image is corrupt"), ("mute", "does not listen")])
def test_a_program_that_does_not_serve(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    monkeypatch.setenv("VOLMIG_TEST_MODE", mode)
    if mode == "mute":
        monkeypatch.setattr(images, "_START_SECONDS", 0.3)
    image = make(tmp_path / "image", qcow2())
    begun = time.monotonic()
    with nothing_left(), pytest.raises(errors.TransferFailed, match=reason) as raised:
        open_image(image, "qcow2", options=CopyOptions(), is_destination=False)
    assert time.monotonic() - begun < 3
    assert raised.value.fields["path"] == str(image)
    assert "/proc/self/fd" not in raised.value.message
    assert list(temporary.iterdir()) == []


def test_what_on_process_raises_ends_the_program(tmp_path: Path, temporary: Path) -> None:
    image = make(tmp_path / "image", qcow2())

    def fail(_: HelperProcess) -> None:
        raise ZeroDivisionError

    with nothing_left(), pytest.raises(ZeroDivisionError):
        open_image(image, "qcow2", options=CopyOptions(), is_destination=False, on_process=fail)
    assert list(temporary.iterdir()) == []


def test_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make(tmp_path / "image", qcow2())
    monkeypatch.setenv("PATH", str(tmp_path))
    with nothing_left(), pytest.raises(errors.ProgramMissing) as raised:
        open_image(image, "qcow2", options=CopyOptions(), is_destination=False)
    assert "qemu-utils" in raised.value.hint
