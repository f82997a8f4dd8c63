"""Headers of disk images, made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

MIB = 1024 * 1024
BACKING_FORMAT, DATA_FILE = 0xE2792ACA, 0x44415441

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 2048 SPARSE "disk.vmdk"
"""


def qcow2(
    *,
    backing: str | bytes = b"",
    backing_format: str | bytes | None = None,
    version: int = 3,
    features: int = 0,
    crypt: int = 0,
    extensions: list[tuple[int, bytes]] | None = None,
    cluster_bits: int = 16,
    name_at: int | None = None,
    name_length: int | None = None,
) -> bytes:
    """Return the first cluster of a qcow2 image of 1 MiB."""
    name = backing.encode() if isinstance(backing, str) else backing
    parts = list(extensions or [])
    if backing_format is not None:
        text = backing_format.encode() if isinstance(backing_format, str) else backing_format
        parts.insert(0, (BACKING_FORMAT, text))
    body = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in parts)
    length = 104 if version == 3 else 72
    place = length + len(body) + 8
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        (place if name else 0) if name_at is None else name_at,
        len(name) if name_length is None else name_length,
        cluster_bits,
        MIB,
        crypt,
        1,
        0x30000,
        0x10000,
        1,
        0,
        0,
    )
    if version == 3:
        header += struct.pack(">QQQII", features, 0, 0, 4, 104)
    return (header + body + bytes(8) + name).ljust(65536, b"\0")


def vmdk(descriptor: str = DESCRIPTOR, *, capacity: int = 2048, table: int = 21, offset: int = 1) -> bytes:
    """Return the beginning of a sparse vmdk image."""
    return vmdk_header(capacity=capacity, table=table, offset=offset) + descriptor.encode().ljust(20 * 512, b"\0")


def vmdk_header(*, capacity: int = 2048, table: int = 21, offset: int = 1, version: int = 1) -> bytes:
    header = struct.pack("<4sIIQQQQIQQQ", b"KDMV", version, 3, capacity, 128, offset, 20, 512, 0, table, 128)
    return header.ljust(512, b"\0")


def make(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
