"""Telling files and block devices from others, also after a restart, and finding out that somebody wrote to them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path

_SYSFS = Path("/sys/dev/block")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FS_IOC_GETVERSION = 0x80087601
_WRITES = (4, 6, 11, 13)
"""In a device's ``stat`` (kernel documentation, block/stat): write I/Os, write sectors, discard I/Os and sectors."""
_REQUESTS = (4, 11)
"""Those of them that are left out (0): the device mapper counts a flush, which changes nothing, as a write I/O of no
sectors; a write has some."""
_READS = 0
"""In the same: read I/Os."""
_PROBE_BYTES = 4096
FILE_VERSION = 3
"""A file's version has so many numbers: size and two times. That of a device has more."""
_BY_NUMBER = ("device", "number")


def identity_of(fd: int) -> tuple[str, ...] | None:
    """Return what an open file or block device is known by; None for anything else.

    A file: its file system, inode and, where the file system tells, the inode's generation. A device: the
    identifier that the device mapper or the hardware gives it. One that has none is known by its number, the boot of
    the system and its ``diskseq``, so that it is another one once it was detached, or the system restarted. A loop
    device over a whole file is that file.
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return ("file", _file_system(fd, status), str(status.st_ino), _generation(fd))
    if stat.S_ISBLK(status.st_mode):
        return _device_identity(_SYSFS / _number(status), _number(status))
    return None


def version_of(fd: int) -> tuple[int, ...] | None:
    """Return what changes when somebody writes, as :attr:`volmig.transfer.base.EndMark.version`.

    Of a device: what the kernel has counted (:data:`_WRITES`), then the device's ``diskseq`` and the boot of the
    system, since the counters begin anew with each attaching. Where the kernel does not tell these (Linux < 5.15) the
    counters are all: equal ones mean nothing once the device was let go of (:func:`outlasts_detaching`).
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if stat.S_ISBLK(status.st_mode):
        return _device_version(_SYSFS / _number(status), lambda: _read_past_the_cache(fd))
    return None


def outlasts_detaching(version: tuple[int, ...] | None) -> bool:
    """Say whether two equal versions mean that nobody has written, whatever became of the end in between."""
    return version is not None and len(version) != len(_WRITES)


def is_certain(identity: tuple[str, ...]) -> bool:
    """Say whether an equal identity means the same storage also after a device may have been detached."""
    return identity[:2] != _BY_NUMBER or all(identity[2:5])


def _number(status: os.stat_result) -> str:
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _file_system(fd: int, status: os.stat_result) -> str:
    # Some file systems have no identifier of their own; the device's number is the next best thing.
    number = os.fstatvfs(fd).f_fsid
    return f"{number:x}" if number else f"dev-{status.st_dev:x}"


def _generation(fd: int) -> str:
    answer = bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETVERSION, answer)
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM):
            return ""
        raise
    return f"{struct.unpack_from('=I', answer)[0]:x}"


def _device_identity(device: Path, number: str) -> tuple[str, ...]:
    partition = _text(device / "partition")
    if partition:
        return (*_device_identity(device.resolve().parent, _text(device.resolve().parent / "dev")), "part", partition)
    backing = _backing_file(device)
    if backing is not None:
        return backing
    for name in ("dm/uuid", "uuid", "wwid", "device/wwid", "serial", "md/uuid"):
        value = _text(device / name)
        if value:
            return ("device", name, value)
    diskseq, boot = _attachment(device) or ("", "")
    return (*_BY_NUMBER, number, boot, diskseq)


def _backing_file(device: Path) -> tuple[str, ...] | None:
    path = _text(device / "loop/backing_file")
    if not path or _text(device / "loop/offset") != "0":
        return None
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return identity_of(fd)
        finally:
            os.close(fd)
    return None


def _attachment(disk: Path) -> tuple[str, str] | None:
    """Return what no two attachings of a disk have in common: its ``diskseq`` and the boot; None if not told."""
    diskseq, boot = _text(disk / "diskseq"), _text(_BOOT_ID).replace("-", "")
    return (diskseq, boot) if diskseq.isdecimal() and re.fullmatch("[0-9a-f]+", boot) else None


def _device_version(device: Path, read: Callable[[], None]) -> tuple[int, ...] | None:
    if not _is_counting(device, read):
        return None
    counted = _writes_counted(device)
    attachment = _attachment(_disk(device))
    if counted is None or attachment is None:
        return counted
    diskseq, boot = attachment
    return (*counted, int(diskseq), int(boot, 16))


def _is_counting(device: Path, read: Callable[[], None]) -> bool:
    """Say whether the kernel counts what is done to a device.

    Devices of the device mapper say that they do not and do all the same, as seen with Linux 6.1. So where it is denied
    one read tells.

    :param read: reads something of the device, which the kernel must count if it counts anything.
    """
    if _text(_disk(device) / "queue/iostats") != "0":
        return True
    before = _counters(device)
    try:
        read()
    except OSError:
        return False
    after = _counters(device)
    return bool(before and after) and before[_READS] != after[_READS]


def _read_past_the_cache(fd: int) -> None:
    direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _PROBE_BYTES) as buffer:
            os.preadv(direct, [buffer], 0)
    finally:
        os.close(direct)


def _disk(device: Path) -> Path:
    """Return a device, or of a partition its disk."""
    return device.resolve().parent if _text(device / "partition") else device


def _writes_counted(device: Path) -> tuple[int, ...] | None:
    fields = _counters(device)
    # An old kernel does not count discards.
    if len(fields) <= max(_WRITES):
        return None
    return tuple(0 if index in _REQUESTS else fields[index] for index in _WRITES)


def _counters(device: Path) -> list[int]:
    return [int(field) for field in _text(device / "stat").split()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
