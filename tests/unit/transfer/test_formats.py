"""Telling formats from headers, and refusing those that lie or reach for other files."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from unittest import TestCase

import ddt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.transfer.base import CopyOptions
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.ends.handles import HandleEnd
from volmig.transfer.images import chains, formats, headers
from volmig.transfer.images.chains import open_chain

from .fakes import Handle, nothing_left, pattern
from .image_headers import BACKING_FORMAT, DATA_FILE, DESCRIPTOR, MIB, make, qcow2, vmdk, vmdk_header


def check(path: Path, format_name: str, **options: object) -> None:
    with FileEnd(str(path), os.O_RDONLY, is_destination=False) as end:
        formats.check_source(end, CopyOptions(source_format=format_name, **options))  # type: ignore[arg-type]


def refused(path: Path, format_name: str, reason: str, **options: object) -> errors.UnsupportedFormat:
    """Check that a source is refused, by the check and by what opens it."""
    with nothing_left():
        with pytest.raises(errors.UnsupportedFormat, match=reason):
            check(path, format_name, **options)
        with pytest.raises(errors.UnsupportedFormat, match=reason) as raised:
            open_chain(str(path), format_name, CopyOptions(**options))  # type: ignore[arg-type]
    assert raised.value.hint
    return raised.value


@ddt.ddt
class ProbeTest(TestCase):
    @ddt.data(
        (b"QFI\xfb\0\0\0\2", "qcow2"),
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"QFI\xfb\0\0\0\x63", "qcow2"),
        (b"QFI\xfb", "qcow2"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"QED\0", "qed"),
        (b"KDMV\1\0\0\0", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (b"# disk descriptorfile\r\nCID=1", "vmdk"),
        (b"version=1\n", "vmdk"),
        (b"# anything\n\n  \r\n#more\nversion=3\r\n", "vmdk"),
        (b"\n VERSION = 2\n", "vmdk"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"),
        (b"Bochs Virtual HD Image\0", "bochs"),
        (b"", ""),
        (b"\0" * 4096, ""),
        (b"# a script\nversion_of=1", ""),
        (b"LUKS\xba\xbe\0\2", ""),
        (b"\xeb\x3c\x90MSDOS5.0", ""),
        (b" QFI\xfb", ""),
    )
    @ddt.unpack
    def test_head(self, head: bytes, expected: str) -> None:
        assert formats.probe(head) == expected
        assert formats.probe(head + bytes(8192)) == expected

    def test_footer_of_a_fixed_vhd(self) -> None:
        footer = (b"conectix\0\0\0\2\0\1\0\0" + bytes(496))[:512]
        assert formats.probe(bytes(4096), footer) == "vpc"
        assert formats.probe(bytes(4096), bytes(512) + footer) == "vpc"
        assert formats.probe(bytes(4096), footer[1:]) == ""
        assert formats.probe(bytes(4096), b"conectix, a word that may end a disk".ljust(512)) == ""


@settings(max_examples=200, deadline=None)
@given(head=st.binary(max_size=600), tail=st.binary(max_size=512))
def test_probe_takes_anything(head: bytes, tail: bytes) -> None:
    assert isinstance(formats.probe(head, tail), str)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_forged_header_is_understood_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["qcow2", "vmdk"]))
    content = bytearray(
        qcow2(backing="base", backing_format="raw", extensions=[(0x6803F857, b"x" * 48)]) if kind == "qcow2" else vmdk()
    )
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=6)):
        content[at] = value
    content = content[: data.draw(st.sampled_from([len(content), 60, 100, 108, 200, 512]))]

    def read(length: int, offset: int) -> bytes:
        assert 0 <= length <= 128 * 1024
        assert offset >= 0
        return bytes(content[offset : offset + length])

    with contextlib.suppress(headers.HeaderInvalid):
        if kind == "qcow2":
            backing = headers.backing_of_qcow2(read)
            assert backing is None or (backing.name and backing.format)
        else:
            headers.check_vmdk(read, len(content))


@pytest.mark.parametrize(
    ("content", "carried"),
    [
        (qcow2(), "qcow2"),
        (qcow2(backing="/etc/passwd", backing_format="raw"), "qcow2"),
        (vmdk(), "vmdk"),
        (DESCRIPTOR.encode(), "vmdk"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(1000), "vdi"),
        (b"vhdxfile" + bytes(1000), "vhdx"),
        (bytes(8192) + (b"conectix\0\0\0\2\0\1\0\0").ljust(512, b"\0"), "vpc"),
    ],
)
def test_a_raw_source_with_the_header_of_an_image(tmp_path: Path, content: bytes, carried: str) -> None:
    source = make(tmp_path / "source", content)
    error = refused(source, "raw", f"header of a {carried} image")
    assert error.fields["format"] == "raw"
    check(source, "raw", ignore_header=True)
    assert source.read_bytes() == content


def test_a_raw_source_without(tmp_path: Path) -> None:
    for content in (b"", b"x", pattern(100_000), b"LUKS\xba\xbe" + bytes(4096)):
        check(make(tmp_path / "source", content), "raw")
    with HandleEnd(Handle(b"QFI\xfb" + bytes(100)), reads=True, writes=False, is_destination=False) as end:  # type: ignore[arg-type]
        with pytest.raises(errors.UnsupportedFormat):
            formats.check_source(end, CopyOptions())
        formats.check_source(end, CopyOptions(ignore_header=True))


@pytest.mark.parametrize("format_name", ["qcow2", "vmdk", "vdi", "vhdx"])
@pytest.mark.parametrize("ignore", [True, False])
def test_an_image_that_is_none(tmp_path: Path, format_name: str, ignore: bool) -> None:
    source = make(tmp_path / "source", bytes(8192))
    refused(source, format_name, "does not carry such a header", ignore_header=ignore)
    other = make(tmp_path / "other", vmdk() if format_name == "qcow2" else qcow2())
    refused(other, format_name, "carries the header of a", ignore_header=ignore)


def test_a_format_that_nobody_translates(tmp_path: Path) -> None:
    refused(make(tmp_path / "source", b"QED\0" + bytes(600)), "qed", "only qcow2, raw")


# --- qcow2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_an_image_that_stands_alone(tmp_path: Path, version: int) -> None:
    source = make(tmp_path / "source", qcow2(version=version))
    check(source, "qcow2")
    with open_chain(str(source), "qcow2", CopyOptions()) as chain:
        assert len(chain.files) == 1
        node = json.loads(chain.address().removeprefix("json:"))
        assert node["backing"] is None
        assert node["driver"] == "qcow2"
        assert node["file"] == {"driver": "file", "filename": f"/proc/self/fd/{chain.descriptors[0]}"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (qcow2(features=4), "external data file"),
        (qcow2(features=4, extensions=[(DATA_FILE, b"/etc/shadow")]), "external data file"),
        (qcow2(extensions=[(DATA_FILE, b"/etc/shadow")]), "external data file"),
        (qcow2(crypt=1), "encrypted"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(backing="base"), "does not name the format"),
        (qcow2(version=2, backing="base"), "does not name the format"),
        (qcow2(backing="base", extensions=[(BACKING_FORMAT, b"")]), "cut off, empty"),
        (qcow2(backing="base", backing_format="raw", extensions=[(BACKING_FORMAT, b"qcow2")]), "twice"),
        (qcow2(backing="base", backing_format="raw\0qcow2"), "NUL"),
        (qcow2(backing="base\0/etc/shadow", backing_format="raw"), "NUL"),
        (qcow2(backing=b"\xff\xfe", backing_format="raw"), "UTF-8"),
        (qcow2(backing="base", backing_format="auto"), "not known"),
        (qcow2(backing="base", backing_format="nbd"), "not known"),
        (qcow2(backing="base", backing_format="raw", name_length=1024), "outside of its header"),
        (qcow2(backing="base", backing_format="raw", name_length=0), "outside of its header"),
        (qcow2(backing="base", backing_format="raw", name_at=1 << 40), "outside of its header"),
        (qcow2(backing="base", backing_format="raw", name_at=1), "outside of its header"),
        (qcow2(extensions=[(1, b"x" * 70000)])[:65536], "longer than the header"),
        (qcow2(version=4), "unknown version"),
        (qcow2(cluster_bits=40), "cannot be"),
        (qcow2()[:80], "cut off"),
        (b"QFI\xfb" + bytes(10), "no header"),
    ],
)
def test_a_qcow2_header_that_is_not_followed(tmp_path: Path, content: bytes, reason: str) -> None:
    make(tmp_path / "base", bytes(MIB))
    source = make(tmp_path / "source", content)
    refused(source, "qcow2", reason)
    refused(source, "qcow2", reason, ignore_header=True, backing_directories=("/",))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret",
        "sub/../../secret",
        "link",
        "directory-link/secret",
        "json:{}",
        'json:{"driver":"file","filename":"/etc/passwd"}',
        "nbd://127.0.0.1/x",
        "file:base",
        "file:/etc/passwd",
        "https://example.org/x",
        "fat:rw:.",
        "/dev/stdin",
        "/proc/self/mem",
    ],
)
def test_a_backing_file_out_of_reach(tmp_path: Path, name: str) -> None:
    make(tmp_path / "secret", bytes(MIB))
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    (volumes / "sub").mkdir()
    make(volumes / "base", bytes(MIB))
    (volumes / "link").symlink_to(tmp_path / "secret")
    (volumes / "directory-link").symlink_to(tmp_path)
    source = make(volumes / "source", qcow2(backing=name, backing_format="raw"))
    refused(source, "qcow2", "its backing file")


def test_a_backing_file_beneath_the_own_directory_is_not_in_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    make(tmp_path / "sub" / "base", bytes(MIB))
    source = make(tmp_path / "source", qcow2(backing="sub/base", backing_format="raw"))
    refused(source, "qcow2", "outside")
    check(source, "qcow2", backing_directories=(str(tmp_path / "sub"),))


@pytest.mark.parametrize("absolute", [True, False])
def test_a_backing_file_that_may_be_used(tmp_path: Path, absolute: bool) -> None:
    base = make(tmp_path / "base image,x=y", bytes(MIB))
    name = str(base) if absolute else base.name
    source = make(tmp_path / "source", qcow2(backing=name, backing_format="raw"))
    check(source, "qcow2")
    with open_chain(str(source), "qcow2", CopyOptions()) as chain:
        node = json.loads(chain.address(512).removeprefix("json:"))
        assert node["driver"] == "raw"
        assert node["size"] == 512
        assert node["file"]["backing"]["driver"] == "raw"
        assert node["file"]["backing"]["file"]["filename"] == f"/proc/self/fd/{chain.descriptors[1]}"
        assert chain.told(f"open /proc/self/fd/{chain.descriptors[1]}") == f"open {base}"


def test_the_own_directory_is_that_of_the_file_and_not_of_a_link_to_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    make(here / "base", bytes(MIB))
    source = make(there / "source", qcow2(backing="base", backing_format="raw"))
    (here / "source").symlink_to(source)
    refused(here / "source", "qcow2", "not there")
    make(there / "base", bytes(MIB))
    with open_chain(str(here / "source"), "qcow2", CopyOptions()) as chain:
        assert chain.files[1].end.name == str(there / "base")


def test_backing_directories_hold_for_the_whole_chain(tmp_path: Path) -> None:
    volumes, bases, other = tmp_path / "volumes", tmp_path / "bases", tmp_path / "other"
    for directory in (volumes, bases, other):
        directory.mkdir()
    make(other / "bottom", bytes(MIB))
    make(bases / "middle", qcow2(backing="../other/bottom", backing_format="raw"))
    source = make(volumes / "source", qcow2(backing="../bases/middle", backing_format="qcow2"))
    refused(source, "qcow2", "outside", backing_directories=(str(bases),))
    check(source, "qcow2", backing_directories=(str(bases), str(other)))
    (tmp_path / "alias").symlink_to(other)
    check(source, "qcow2", backing_directories=(str(bases), str(tmp_path / "alias")))


def test_every_file_of_a_chain_is_what_the_one_above_says(tmp_path: Path) -> None:
    source = make(tmp_path / "source", qcow2(backing="base", backing_format="qcow2"))
    make(tmp_path / "base", bytes(MIB))
    refused(source, "qcow2", "does not carry such a header")
    make(tmp_path / "base", qcow2(backing="/etc/passwd", backing_format="raw"))
    refused(source, "qcow2", "outside")
    make(tmp_path / "base", qcow2(features=4))
    refused(source, "qcow2", "external data file")
    make(tmp_path / "source", qcow2(backing="base", backing_format="raw"))
    refused(source, "qcow2", "header of a qcow2 image")


def test_circles_and_chains_without_end(tmp_path: Path) -> None:
    source = make(tmp_path / "source", qcow2(backing="source", backing_format="qcow2"))
    refused(source, "qcow2", "circle")
    make(tmp_path / "source", qcow2(backing="other", backing_format="qcow2"))
    make(tmp_path / "other", qcow2(backing="source", backing_format="qcow2"))
    refused(source, "qcow2", "circle")
    (tmp_path / "other").unlink()
    os.link(source, tmp_path / "other")
    refused(source, "qcow2", "circle")
    for index in range(20):
        make(tmp_path / f"{index}", qcow2(backing=f"{index + 1}", backing_format="qcow2"))
    make(tmp_path / "20", qcow2())
    refused(tmp_path / "0", "qcow2", f"{chains.DEEPEST_CHAIN} are the most")
    check(tmp_path / "5", "qcow2")


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket-like device", "absent", "dangling link"])
def test_a_backing_file_that_is_none(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    if kind == "pipe":
        os.mkfifo(base)
    elif kind == "directory":
        base.mkdir()
    elif kind == "socket-like device":
        base.symlink_to("/dev/null")
    elif kind == "dangling link":
        base.symlink_to(tmp_path / "nowhere")
    source = make(tmp_path / "source", qcow2(backing="base", backing_format="raw"))
    refused(source, "qcow2", "regular file|outside")


def test_an_image_by_a_handle_cannot_have_a_backing_file(tmp_path: Path) -> None:
    alone = Handle(qcow2())
    with HandleEnd(alone, reads=True, writes=False, is_destination=False) as end:  # type: ignore[arg-type]
        formats.check_source(end, CopyOptions(source_format="qcow2"))
    based = Handle(qcow2(backing="base", backing_format="raw"))
    with (
        HandleEnd(based, reads=True, writes=False, is_destination=False) as end,  # type: ignore[arg-type]
        pytest.raises(errors.UnsupportedFormat, match="not a path"),
    ):
        formats.check_source(end, CopyOptions(source_format="qcow2"))


# --- vmdk -----------------------------------------------------------------------------------------

STREAM = DESCRIPTOR.replace("monolithicSparse", "streamOptimized")


def test_vmdk_in_one_file(tmp_path: Path) -> None:
    check(make(tmp_path / "sparse", vmdk()), "vmdk")
    check(make(tmp_path / "stream", vmdk(STREAM)), "vmdk")
    at_end = vmdk(STREAM, table=(1 << 64) - 1) + bytes(4096) + vmdk_header() + bytes(512)
    check(make(tmp_path / "stream at end", at_end), "vmdk")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DESCRIPTOR.encode(), "names other files"),
        (DESCRIPTOR.replace("SPARSE", "FLAT").encode(), "names other files"),
        (b"COWD" + bytes(2048), "names other files"),
        (vmdk(capacity=0), "no size"),
        (vmdk(DESCRIPTOR.replace("monolithicSparse", "monolithicFlat")), "monolithicFlat"),
        (vmdk(DESCRIPTOR.replace("monolithicSparse", "twoGbMaxExtentSparse")), "twoGbMax"),
        (vmdk(DESCRIPTOR.replace("createType", "nothing")), "'none'"),
        (vmdk(DESCRIPTOR + 'createType="monolithicFlat"\n'), "only monolithicSparse"),
        (vmdk(DESCRIPTOR + 'RW 2048 FLAT "/etc/passwd" 0\n'), "only extent"),
        (vmdk(DESCRIPTOR.replace("SPARSE", "FLAT")), "only extent"),
        (vmdk(DESCRIPTOR.replace("RW 2048", "#")), "only extent"),
        (vmdk(DESCRIPTOR.replace("ffffffff", "12345678")), "parentCID"),
        (vmdk(DESCRIPTOR + 'parentFileNameHint="/etc/passwd"\n'), "parentFileNameHint"),
        (vmdk(DESCRIPTOR + '\0parentFileNameHint="/etc/passwd"\n'), "parentFileNameHint"),
        (vmdk(offset=0), "part of another"),
        (vmdk(offset=1 << 40), "not where one can be"),
        (vmdk_header(version=9) + bytes(20480), "unknown version"),
        (b"KDMV" + bytes(20), "one file"),
        (vmdk(STREAM, table=(1 << 64) - 1), "one file"),
        (vmdk(STREAM, table=(1 << 64) - 1) + vmdk_header(capacity=0) + bytes(512), "no size"),
        (vmdk(STREAM, table=(1 << 64) - 1) + vmdk_header(offset=9) + bytes(512), "differ"),
        (vmdk(STREAM, table=(1 << 64) - 1) + vmdk_header(table=(1 << 64) - 1) + bytes(512), "another footer"),
    ],
)
def test_vmdk_that_reaches_for_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    refused(make(tmp_path / "source", content), "vmdk", reason, ignore_header=True)
