"""Reading the headers of disk images: what they are, and which other files they name. Nothing is opened here.

Whoever may write to a volume can forge all of this. So nothing is believed that decides about access: what a header
names is only ever compared with what is allowed, and a header that cannot be understood in full is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Reads (length, offset); fewer bytes only at the end."""

HEAD_BYTES = 4096
"""How much of the beginning tells a format."""
TAIL_BYTES = 512
"""How much of the end does."""

_MOST_DESCRIPTOR_BYTES = 20 * 512
_MOST_EXTENSION_BYTES = 64 * 1024
_MOST_NAME_BYTES = 1023
_SECTOR = 512

_MAGICS = (
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image\0", "bochs"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)
_QCOW = b"QFI\xfb"
_VPC_FOOTER = re.compile(rb"conectix.{4}\x00\x01\x00\x00", re.DOTALL)
_VMDK_TEXT = re.compile(rb"(?:[ \t\r]*\n|#[^\n]*(?:\n|$))*[ \t]*version[ \t]*=[ \t]*\d", re.IGNORECASE)

_QCOW2_DATA_FILE = 1 << 2
_EXTENSION_END, _EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE = 0, 0xE2792ACA, 0x44415441

_VMDK_WHOLE = frozenset({"monolithicsparse", "streamoptimized"})
_VMDK_AT_END = 0xFFFFFFFFFFFFFFFF


class HeaderInvalid(Exception):
    """A header is not what it must be, or names what an image may not name; the text says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backing:
    """The file that an image is the difference to."""

    name: str
    format: str


def probe(head: bytes, tail: bytes = b"") -> str:
    """Return the format whose header data carries; empty when none is known.

    One of qcow, qcow2, qed, vmdk (sparse or a text descriptor), vdi, vhdx, vpc (VHD, also by the footer of a fixed
    one), parallels and bochs. LUKS is none of them: an encrypted volume carries that header by right, what is behind
    it is data of the volume all the same, and it names no other file.

    :param head: the first 4 KiB, or all if there is less. More is not looked at.
    :param tail: the last 512 bytes.
    """
    head = head[:HEAD_BYTES]
    if head.startswith(_QCOW):
        return "qcow" if head[4:8] == b"\0\0\0\1" else "qcow2"
    for offset, magic, name in _MAGICS:
        if head.startswith(magic, offset):
            return name
    if head[:64].lower().startswith(b"# disk descriptorfile") or _VMDK_TEXT.match(head):
        return "vmdk"
    if _VPC_FOOTER.match(tail[-TAIL_BYTES:]):
        return "vpc"
    return ""


def backing_of_qcow2(read: ReadAt) -> Backing | None:
    """Return what a qcow2 image is based on; None when it stands alone.

    :raises HeaderInvalid: when it is encrypted, keeps its data in another file, names its backing file without the
        format of it, or is malformed.
    """
    head = read(112, 0)
    if len(head) < 72 or not head.startswith(_QCOW):
        raise HeaderInvalid("it has no header of that format")
    (version, name_at, name_length, cluster_bits, _, crypt) = struct.unpack_from(">IQIIQI", head, 4)
    if version not in (2, 3):
        raise HeaderInvalid(f"its header has the unknown version {version}")
    if not 9 <= cluster_bits <= 21:
        raise HeaderInvalid(f"its clusters of 2^{cluster_bits} bytes cannot be")
    if crypt:
        raise HeaderInvalid("it is encrypted, and the key is not at hand")
    header_length = 72
    if version == 3:
        if len(head) < 104:
            raise HeaderInvalid("its header is cut off")
        (features, header_length) = struct.unpack_from(">Q", head, 72)[0], struct.unpack_from(">I", head, 100)[0]
        if features & _QCOW2_DATA_FILE:
            raise HeaderInvalid("it keeps its data in an external data file")
        if header_length < 104 or header_length % 8 or header_length > _MOST_EXTENSION_BYTES:
            raise HeaderInvalid(f"its header of {header_length} bytes cannot be")
    end = min(1 << cluster_bits, _MOST_EXTENSION_BYTES)
    if name_at:
        end = min(end, name_at)
    backing_format = _backing_format(read(max(0, end - header_length), header_length))
    if not name_at:
        return None
    if not 0 < name_length <= _MOST_NAME_BYTES or not header_length <= name_at <= (1 << cluster_bits) - name_length:
        raise HeaderInvalid("the name of its backing file lies outside of its header")
    name = _text(read(name_length, name_at), name_length)
    if not backing_format:
        raise HeaderInvalid(f"it does not name the format of its backing file {name!r}, and formats are never guessed")
    return Backing(name=name, format=backing_format)


def _backing_format(data: bytes) -> str:
    """Walk through the extensions of a header; return the format that one names, or nothing."""
    found = ""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        at += 8
        if kind == _EXTENSION_END:
            return found
        if length > len(data) - at:
            raise HeaderInvalid("an extension of its header is longer than the header")
        if kind == _EXTENSION_DATA_FILE:
            raise HeaderInvalid("it names an external data file")
        if kind == _EXTENSION_BACKING_FORMAT:
            if found:
                raise HeaderInvalid("it names the format of its backing file twice")
            found = _text(data[at : at + length], length)
        at += -(-length // 8) * 8
    return found


def _text(data: bytes, length: int) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise HeaderInvalid("a name in its header is not UTF-8") from exc
    if len(data) != length or not text or "\0" in text:
        raise HeaderInvalid("a name in its header is cut off, empty, or has a NUL character")
    return text


def check_vmdk(read: ReadAt, size_bytes: int) -> None:
    """Check that a vmdk image is one file that names no other: monolithicSparse or streamOptimized.

    :raises HeaderInvalid: when it is not, or is malformed.
    """
    place = _vmdk_descriptor(read(_SECTOR, 0), may_be_at_end=True)
    if place is None:
        # A stream ends with the header that counts: footer and marker in its last 1024 bytes.
        place = _vmdk_descriptor(read(_SECTOR, max(0, size_bytes - 2 * _SECTOR)), may_be_at_end=False)
        first = _vmdk_descriptor(read(_SECTOR, 0), may_be_at_end=False, with_table=False)
        if place != first:
            raise HeaderInvalid("its header and its footer differ about the place of its descriptor")
    if place is None:
        raise HeaderInvalid("it has no descriptor of its own")
    offset, length = place
    _check_descriptor(read(length, offset))


def _vmdk_descriptor(header: bytes, *, may_be_at_end: bool, with_table: bool = True) -> tuple[int, int] | None:
    """Return offset and length of the descriptor that a sparse header names; None when the footer counts instead."""
    if len(header) < 79 or not header.startswith(b"KDMV"):
        raise HeaderInvalid(
            "it is not a sparse image in one file; a descriptor that names other files is never followed"
        )
    _, version, _, capacity, _, offset, length, _, _, table = struct.unpack_from("<4sIIQQQQIQQ", header)
    if not 1 <= version <= 3:
        raise HeaderInvalid(f"its header has the unknown version {version}")
    # With a capacity of 0 readers take the descriptor for that of a whole set of files.
    if not capacity:
        raise HeaderInvalid(
            "its header gives it no size, and so leaves all to its descriptor, which could name any file"
        )
    if with_table and table == _VMDK_AT_END:
        if may_be_at_end:
            return None
        raise HeaderInvalid("its footer leads to another footer")
    if not offset or not length:
        raise HeaderInvalid("it has no descriptor of its own, and is a part of another image")
    if offset > 1 << 20 or length * _SECTOR > _MOST_DESCRIPTOR_BYTES * 8:
        raise HeaderInvalid("its descriptor is not where one can be")
    return offset * _SECTOR, length * _SECTOR


def _check_descriptor(data: bytes) -> None:
    text = data.split(b"\0", 1)[0].decode(errors="replace")
    kinds = re.findall(r"createtype\s*=\s*\"?([^\"\r\n]*)", text, re.IGNORECASE)
    if len(kinds) != 1 or kinds[0].strip().lower() not in _VMDK_WHOLE:
        shown = kinds[0] if kinds else "none"
        raise HeaderInvalid(f"its kind is {shown!r}, and only monolithicSparse and streamOptimized are one file")
    if b"parentfilenamehint" in data.lower():
        raise HeaderInvalid("it is the difference to another image (parentFileNameHint)")
    parents = re.findall(r"parentcid\s*=\s*([0-9a-f]+)", text, re.IGNORECASE)
    if any(parent.lower() != "ffffffff" for parent in parents):
        raise HeaderInvalid("it is the difference to another image (parentCID)")
    extents = re.findall(r"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)", text, re.IGNORECASE | re.MULTILINE)
    if [extent.upper() for extent in extents] != ["SPARSE"]:
        raise HeaderInvalid("its descriptor does not name itself as its only extent")
