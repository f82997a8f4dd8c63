"""What an end is known by, and what tells that somebody wrote to it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.transfer import CopyStage, TransferProgress, Verify, copy, copy_data
from volmig.transfer.base import CopyOptions
from volmig.transfer.ends import identity
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.ends.handles import HandleEnd
from volmig.transfer.ends.identity import identity_of, version_of

from .fakes import Handle, pattern
from .memory_end import MemoryEnd, let_open

MIB = 1024 * 1024


def known_by(path: Path) -> tuple[str, ...] | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return identity_of(fd)
    finally:
        os.close(fd)


def test_a_file_is_the_same_by_any_name_and_after_any_write(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"1")
    first = known_by(one)
    assert first is not None
    assert first[0] == "file"
    assert all(isinstance(part, str) for part in first)
    assert known_by(other) != first
    one.rename(tmp_path / "renamed")
    with (tmp_path / "renamed").open("ab") as file:
        file.write(b"more")
        assert identity_of(file.fileno()) == first


def test_an_inode_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    if not (known_by(_filled(tmp_path / "x")) or ("",))[-1]:
        return  # This file system keeps no generations.
    seen = set()
    for _ in range(8):
        found = known_by(_filled(tmp_path / "again"))
        assert found not in seen
        seen.add(found)
        (tmp_path / "again").unlink()


def _filled(path: Path) -> Path:
    path.write_bytes(b"x")
    return path


def test_the_version_of_a_file_tells_of_each_kind_of_change(tmp_path: Path) -> None:
    path = _filled(tmp_path / "file")
    os.utime(path, ns=(0, 0))
    with path.open("r+b", buffering=0) as file:
        before = version_of(file.fileno())
        status = path.stat()
        assert before == (1, 0, status.st_ctime_ns)
        file.write(b"yy")
        after = version_of(file.fileno())
        assert after is not None
        assert before is not None
        assert (after[0], after[1] > 0) == (2, True)
        assert version_of(file.fileno()) == after


def test_what_is_neither_file_nor_device_is_unknown() -> None:
    reading, writing = os.pipe()
    try:
        assert identity_of(reading) is None
        assert version_of(writing) is None
    finally:
        os.close(reading)
        os.close(writing)


def test_a_handle_is_its_file(tmp_path: Path) -> None:
    path = _filled(tmp_path / "file")
    with path.open("rb") as handle, FileEnd(str(path), os.O_RDONLY, is_destination=False) as end:
        by_handle = HandleEnd(handle, reads=True, writes=False, is_destination=False)
        assert by_handle.mark() == end.mark()
    memory = HandleEnd(io.BytesIO(b"x"), reads=True, writes=False, is_destination=False)
    assert (memory.mark().identity, memory.mark().version) == (None, None)


# --- devices, as /sys describes them ----------------------------------------------------------


def put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def test_a_device_is_known_by_what_outlives_a_restart(tmp_path: Path) -> None:
    of = identity._device_identity
    assert of(put(tmp_path / "dm", dm__uuid="LVM-abc"), "253:0") == ("device", "dm/uuid", "LVM-abc")
    assert of(put(tmp_path / "nvme", wwid="eui.1", serial="S"), "259:0") == ("device", "wwid", "eui.1")
    assert of(put(tmp_path / "sd", device__wwid="naa.5"), "8:0") == ("device", "device/wwid", "naa.5")
    assert of(put(tmp_path / "vd", serial=""), "252:0")[:3] == ("device", "number", "252:0")


def test_a_partition_is_its_disk_s_and_has_a_number(tmp_path: Path) -> None:
    disk = put(tmp_path / "sda", dev="8:0", wwid="naa.5")
    parts = [put(disk / f"sda{number}", partition=str(number)) for number in (1, 2)]
    found = [identity._device_identity(part, f"8:{index}") for index, part in enumerate(parts)]
    assert found == [("device", "wwid", "naa.5", "part", "1"), ("device", "wwid", "naa.5", "part", "2")]


def test_a_loop_device_over_a_whole_file_is_that_file(tmp_path: Path) -> None:
    backing = _filled(tmp_path / "backing")
    loop = put(tmp_path / "loop0", loop__backing_file=str(backing), loop__offset="0")
    assert identity._device_identity(loop, "7:0") == known_by(backing)
    put(loop, loop__offset="512")
    assert identity._device_identity(loop, "7:0")[:3] == ("device", "number", "7:0")
    put(loop, loop__offset="0", loop__backing_file=str(tmp_path / "gone (deleted)"))
    assert identity._device_identity(loop, "7:0")[:3] == ("device", "number", "7:0")


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("0000-000a\n")
    monkeypatch.setattr(identity, "_BOOT_ID", path)
    return path


def not_asked() -> None:
    raise AssertionError("a device that does not deny to count is not read")


def test_a_number_is_worth_something_for_one_attachment_only(tmp_path: Path, boot: Path) -> None:
    device = put(tmp_path / "loop0", dev="7:0", diskseq="41")
    seen = [identity._device_identity(device, "7:0")]
    assert seen[0] == ("device", "number", "7:0", "0000000a", "41")
    seen.append(identity._device_identity(put(device, diskseq="42"), "7:0"))
    boot.write_text("0000-000b\n")
    seen.append(identity._device_identity(device, "7:0"))
    part = put(device / "loop0p1", partition="1")
    seen.append(identity._device_identity(part, "259:0"))
    assert seen[-1][-2:] == ("part", "1")
    assert len(set(seen)) == 4
    assert all(identity.is_certain(one) for one in seen)
    (device / "diskseq").unlink()
    for one in (identity._device_identity(device, "7:0"), identity._device_identity(part, "259:0")):
        assert one[:3] == ("device", "number", "7:0")
        assert not identity.is_certain(one)
    assert identity.is_certain(("device", "wwid", "eui.1"))
    assert identity.is_certain(("file", "1", "2", ""))


def test_a_device_that_was_attached_again_is_another_version(tmp_path: Path, boot: Path) -> None:
    counted = " ".join(str(number) for number in range(17))
    disk = put(tmp_path / "sda", stat=counted, diskseq="41")
    part = put(disk / "sda1", partition="1", stat=counted)
    for device in (disk, part):
        put(disk, diskseq="41")
        boot.write_text("0000-000a\n")
        first = identity._device_version(device, not_asked)
        assert first == (0, 6, 0, 13, 41, 10)
        assert identity.outlasts_detaching(first)
        assert len(first) != identity.FILE_VERSION
        put(disk, diskseq="42")
        again = identity._device_version(device, not_asked)
        boot.write_text("0000-000b\n")
        restarted = identity._device_version(device, not_asked)
        assert len({first, again, restarted}) == 3


@pytest.mark.parametrize("lost", ["diskseq", "boot"])
def test_without_a_diskseq_no_version_claims_to_know(tmp_path: Path, boot: Path, lost: str) -> None:
    device = put(tmp_path / "sda", stat=" ".join(str(number) for number in range(17)), diskseq="41")
    (boot if lost == "boot" else device / "diskseq").unlink()
    version = identity._device_version(device, not_asked)
    assert version == (0, 6, 0, 13)
    assert not identity.outlasts_detaching(version)
    assert not identity.outlasts_detaching(None)
    assert identity.outlasts_detaching((1, 2, 3))


def test_the_version_of_a_device_counts_what_writes_and_discards_change_only(tmp_path: Path) -> None:
    fields = [str(number) for number in range(17)]
    device = put(tmp_path / "sda", stat=" ".join(fields), queue__iostats="1")
    before = identity._writes_counted(device)
    assert before == (0, 6, 0, 13)
    for index in range(17):
        changed = [*fields[:index], "99", *fields[index + 1 :]]
        put(device, stat="  ".join(changed))
        assert (identity._writes_counted(device) != before) == (index in (6, 13))
    # An old kernel does not count discards: that tells nothing.
    put(device, stat=" ".join(fields[:11]))
    assert identity._writes_counted(device) is None
    assert identity._writes_counted(tmp_path / "absent") is None


def test_a_device_that_denies_to_count_is_believed_when_it_does_not(tmp_path: Path) -> None:
    fields = [str(number) for number in range(17)]
    device = put(tmp_path / "dm-0", stat=" ".join(fields), queue__iostats="0")

    def counted() -> None:
        put(device, stat=" ".join(["1", *fields[1:]]))

    def cannot() -> None:
        counted()
        raise OSError("an unreadable sector")

    assert identity._device_version(device, lambda: None) is None
    assert identity._device_version(device, counted) == (0, 6, 0, 13)
    put(device, stat=" ".join(fields))
    assert identity._device_version(device, cannot) is None
    assert identity._device_version(put(tmp_path / "dm-1", queue__iostats="0"), lambda: None) is None


@pytest.mark.parametrize("stage", list(CopyStage))
@pytest.mark.parametrize("verify", list(Verify))
def test_a_device_that_is_written_to_meanwhile(
    monkeypatch: pytest.MonkeyPatch, stage: CopyStage, verify: Verify
) -> None:
    if (stage, verify) == (CopyStage.VERIFY, Verify.NONE):
        return
    let_open(monkeypatch)
    source: Any = MemoryEnd("/dev/sdx", pattern(2 * MIB))
    destination: Any = Handle(bytes(2 * MIB))

    def meddle(event: TransferProgress) -> None:
        if event.stage is stage:
            source.stamp = (1, 8, 0, 0)

    with pytest.raises(errors.SourceChanged, match="the kernel has counted writes to it, or it was detached"):
        copy(source, destination, size_bytes=2 * MIB, options=CopyOptions(verify=verify), progress=meddle)


def test_a_device_of_which_nobody_counts_the_writes_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    let_open(monkeypatch)
    source: Any = MemoryEnd("/dev/sdx", pattern(2 * MIB))
    destination: Any = Handle(bytes(2 * MIB))
    source.stamp = None
    copied = copy_data(source, destination, size_bytes=2 * MIB)
    assert copied.source_mark.version is None
    assert destination.content == source.content
