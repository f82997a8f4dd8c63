"""System calls that the standard library does not offer as drivers need them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_RENAME_NOREPLACE = 1
_NOT_OFFERED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
_AT_EMPTY_PATH = 0x1000
_AT_HANDLE_FID = 0x200
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_BTIME_OFFSET = 80  # in struct statx: seconds in 64 bits, nanoseconds in 32
_HANDLE_BYTES = 128
_FLOCK = "hhqqi0q"  # struct flock: type, whence, start, length, pid; padded to the alignment of off_t


def rename_without_overwriting(source_fd: int, source: str, target_fd: int, target: str) -> None:
    """Rename *source* in one open directory to *target* in another, never replacing anything.

    Atomic where the file system offers ``RENAME_NOREPLACE``. Elsewhere a hard link is made and then the old name is
    removed: a crash between the two leaves one file with both names.

    :raises FileExistsError: when *target* is there.
    :raises OSError: as rename(2).
    """
    number = _renameat2(source_fd, source, target_fd, target)
    if number == 0:
        return
    if number not in _NOT_OFFERED:
        raise OSError(number, os.strerror(number), source, None, target)
    os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    os.fsync(target_fd)
    os.unlink(source, dir_fd=source_fd)


def _renameat2(source_fd: int, source: str, target_fd: int, target: str) -> int:
    """Return 0, or the error number."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:  # a C library without it
        return errno.ENOSYS
    result: int = call(
        ctypes.c_int(source_fd),
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_int(target_fd),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_RENAME_NOREPLACE),
    )
    return ctypes.get_errno() if result else 0


def file_identity(fd: int) -> str:
    """Return what tells an open file from any other that its file system has, had or will have.

    It is made of the inode's number, the time of birth and the handle by which an NFS server would know the file, which
    is another at each use of an inode; a part that is not offered is empty. It does not depend on the
    file's name, size or data, nor on the device's number, and outlives a new start of the host. Where only the inode's
    number is offered, a later file can have the same identity.
    """
    return f"{os.fstat(fd).st_ino}:{_birth_time(fd)}:{_handle(fd)}"


def _birth_time(fd: int) -> str:
    call = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if call is None or call(ctypes.c_int(fd), b"", _AT_EMPTY_PATH, ctypes.c_uint(_STATX_BTIME), answer):
        return ""
    (offered,) = struct.unpack_from("I", answer, 0)
    seconds, nanoseconds = struct.unpack_from("qI", answer, _BTIME_OFFSET)
    return f"{seconds}.{nanoseconds:09}" if offered & _STATX_BTIME else ""


def _handle(fd: int) -> str:
    call = getattr(ctypes.CDLL(None, use_errno=True), "name_to_handle_at", None)
    if call is None:
        return ""
    for flags in (0, _AT_HANDLE_FID):  # the second is for file systems that cannot be exported, as overlayfs
        answer = ctypes.create_string_buffer(8 + _HANDLE_BYTES)
        struct.pack_into("Ii", answer, 0, _HANDLE_BYTES, 0)
        mount = ctypes.c_int()
        if not call(ctypes.c_int(fd), b"", answer, ctypes.byref(mount), ctypes.c_int(_AT_EMPTY_PATH | flags)):
            length, kind = struct.unpack_from("Ii", answer, 0)
            return f"{kind:x}.{answer.raw[8 : 8 + length].hex()}"
    return ""


def lock_holder(fd: int) -> str:
    """Say who holds a byte-range lock on any part of an open file; empty when nobody does.

    QEMU locks the images that it uses so. Locks of flock(2) are not seen. A process's own POSIX locks do not
    count, as fcntl(2) has it; locks taken through other open file descriptions do.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    except OSError as exc:
        if exc.errno in {errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP}:  # a file system without locks has no holders
            return ""
        raise
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
    if kind == fcntl.F_UNLCK:
        return ""
    return f"process {pid} has locked its file" if pid > 0 else "a process has locked its file, as QEMU does"
