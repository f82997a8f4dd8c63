"""Telling disk image formats from raw data by their headers."""

from __future__ import annotations

import os

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
)
_VHD_FOOTER_BYTES = 512


def image_format(fd: int, *, size_bytes: int | None = None) -> str:
    """Return the format that an open file's header shows: ``qcow2``, ``vmdk``, …, or ``raw`` when it shows none.

    :param size_bytes: where the data ends, for a block device, of which the system does not tell a size as of a file.

    A LUKS header does not make a file less raw: its bytes are the disk, encrypted.
    """
    header = os.pread(fd, 128, 0)
    for offset, signature, name in _SIGNATURES:
        if header[offset : offset + len(signature)] == signature:
            return name
    size = os.fstat(fd).st_size if size_bytes is None else size_bytes
    if size > _VHD_FOOTER_BYTES and os.pread(fd, 8, size - _VHD_FOOTER_BYTES) == b"conectix":
        return "vhd"
    return "raw"
