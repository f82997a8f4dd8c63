"""Finding out what stands against overwriting a block device or a file: who uses it, and what is on it.

Nothing here writes. What is found is what the kernel tells this process: mounts of other mount namespaces are seen as
a device in use, but not where they are mounted; another host that uses shared storage is not seen at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shlex
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from volmig import errors

_BLKROGET = 0x125E


@dataclass(frozen=True, kw_only=True, slots=True)
class Obstacle:
    """One thing that stands against overwriting."""

    what: str
    """What it is, as the end of a sentence that begins with the path."""
    shown_by: str
    """A command that shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What the kernel tells a file or a device from others by."""

    is_device: bool
    number: tuple[int, int]
    """Major and minor: of a device, its own; of a file, those of its file system."""
    inode: int = 0
    """Of a file; 0 for a device, which may have many nodes."""

    @classmethod
    def of(cls, status: os.stat_result) -> Storage | None:
        """Return it for a regular file or a block device, and None for anything else."""
        if stat.S_ISBLK(status.st_mode):
            return cls(is_device=True, number=_split(status.st_rdev))
        if stat.S_ISREG(status.st_mode):
            return cls(is_device=False, number=_split(status.st_dev), inode=status.st_ino)
        return None


def identify(path: str) -> Storage | None:
    """Return what a path leads to; None when that is nothing, or neither a regular file nor a block device."""
    try:
        return Storage.of(Path(path).stat())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Where the kernel is asked."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    identify: Callable[[str], Storage | None] = identify


def obstacles(storage: Storage, path: str, system: System | None = None) -> list[Obstacle]:
    """Return who uses a file or device, as far as the kernel tells; the most telling first.

    Of a device that is divided, its partitions count too. A process that only reads does not count.

    :param path: by which people know it, for the commands that they are told.
    """
    system = system or System()
    found = [*_mounts(storage, path, system), *_swaps(storage, system), *_loops(storage, system)]
    if storage.is_device:
        found += [*_holders(storage, path, system), *_writers(storage, path, system)]
    return found


def mounted_at(storage: Storage, system: System | None = None) -> list[str]:
    """Return where a device, a partition of it, or a loop device over it is mounted so that it can be written to."""
    system = system or System()
    looped = [loop for loop, backing in _loop_devices(system) if backing == storage]
    return [
        mount.place
        for one in (storage, *looped)
        for mount in _mount_points(_family(one, system), system)
        if not mount.is_read_only
    ]


def claim(fd: int) -> int | None:
    """Claim an open block device, so that nobody can mount it or make it part of something; None when it is in use.

    The claim lasts until the descriptor that is returned is closed. Everybody can still open the device.

    :raises OSError: when it cannot be opened for another reason.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return None
        raise


def is_read_only(fd: int) -> bool:
    """Say whether an open block device refuses writes.

    :raises OSError: when it does not tell.
    """
    answer = bytearray(4)
    fcntl.ioctl(fd, _BLKROGET, answer)
    return bool(struct.unpack("=i", answer)[0])


def check_apart(source: Storage, destination: Storage, system: System | None = None) -> None:
    """Check that writing to one does not write to the other: a disk and its partition, a loop device and its file.

    :raises volmig.errors.RequestInvalid: when they share storage; that is never what somebody wants.
    """
    system = system or System()
    under_source, under_destination = _foundations(source, system), _foundations(destination, system)
    if not source.is_device:
        under_source |= _foundations(Storage(is_device=True, number=source.number), system)
    for one, other in ((destination, under_source), (source, under_destination)):
        if one in other:
            raise errors.RequestInvalid(
                what="The destination",
                reason="it lies on the same storage as the source of the copy",
                hint="`lsblk` shows which device is part of which. Name another destination.",
            )


def _foundations(storage: Storage, system: System) -> set[Storage]:
    """Return a file or device with all that it lies upon, so that writing to these may write to it."""
    found: set[Storage] = set()
    pending = [storage]
    while pending:
        one = pending.pop()
        known = one in found
        found.add(one)
        if known or not one.is_device:
            continue
        device = _sysfs(one, system)
        if _text(device / "partition"):
            pending += _devices([device.resolve().parent])
        pending += _devices(_entries(device / "slaves"))
        backing = _text(device / "loop" / "backing_file")
        below = system.identify(backing) if backing else None
        pending += [below] if below is not None else []
    return found


# --- who uses it ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mount:
    device: Storage
    place: str
    is_read_only: bool


def _mounts(storage: Storage, path: str, system: System) -> Iterator[Obstacle]:
    for mount in _mount_points(_family(storage, system), system):
        who = "it is" if mount.device == storage else f"its partition {_name(mount.device, system)} is"
        yield Obstacle(what=f"{who} mounted at {mount.place}", shown_by=shlex.join(["lsblk", path]))


def _mount_points(family: list[Storage], system: System) -> Iterator[_Mount]:
    """Yield where one of some devices is mounted, as this process sees it."""
    for line in _lines(system.proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, source = before.split(), after.split()
        if len(fields) < 6 or len(source) < 2:
            continue
        for device in family:
            if not device.is_device:
                continue
            number = f"{device.number[0]}:{device.number[1]}"
            # btrfs and its like have numbers of their own; their device is told by its name.
            named = _unescape(source[1])
            if fields[2] == number or (named.startswith("/") and system.identify(named) == device):
                options = fields[5].split(",")
                yield _Mount(device=device, place=_unescape(fields[4]), is_read_only="ro" in options)


def _swaps(storage: Storage, system: System) -> Iterator[Obstacle]:
    family = _family(storage, system)
    for line in _lines(system.proc / "swaps")[1:]:
        used = system.identify(_unescape(line.split()[0])) if line.split() else None
        if used is not None and used in family:
            who = "it is" if used == storage else f"its partition {_name(used, system)} is"
            yield Obstacle(what=f"{who} in use as swap", shown_by="swapon --show")


def _loops(storage: Storage, system: System) -> Iterator[Obstacle]:
    family = _family(storage, system)
    for loop, backing in _loop_devices(system):
        if backing not in family:
            continue
        name = _name(loop, system)
        places = [mount.place for mount in _mount_points(_family(loop, system), system)]
        mounted = f", which is mounted at {', '.join(places)}" if places else ""
        yield Obstacle(what=f"the loop device {name} is made of it{mounted}", shown_by=f"losetup --list {name}")


def _loop_devices(system: System) -> Iterator[tuple[Storage, Storage]]:
    for device in _entries(system.sys / "block"):
        path = _text(device / "loop" / "backing_file")
        backing = system.identify(path) if path else None
        if backing is not None:
            for loop in _devices([device]):
                yield loop, backing


def _holders(storage: Storage, path: str, system: System) -> Iterator[Obstacle]:
    for one in _family(storage, system):
        names = [_holder_name(holder) for holder in _entries(_sysfs(one, system) / "holders")]
        if names:
            who = "it is" if one == storage else f"its partition {_name(one, system)} is"
            yield Obstacle(what=f"{who} part of {', '.join(names)}", shown_by=shlex.join(["lsblk", path]))


def _holder_name(holder: Path) -> str:
    mapped = _text(holder / "dm" / "name")
    return f"/dev/mapper/{mapped}" if mapped else _node(holder.name)


def _writers(storage: Storage, path: str, system: System) -> Iterator[Obstacle]:
    """Yield the processes that have a device open for writing, as virtual machines have their disks.

    Those of other users are seen by root only.
    """
    found = []
    family = _family(storage, system)
    own = str(os.getpid())
    for process in _entries(system.proc):
        if not process.name.isdecimal() or process.name == own:
            continue
        if any(_writes_to(process, link, family, system) for link in _entries(process / "fd")):
            found.append(f"{process.name} ({_text(process / 'comm') or 'unknown'})")
    if found:
        processes = "process" if len(found) == 1 else "processes"
        yield Obstacle(
            what=f"it is open for writing in {processes} {', '.join(found)}",
            shown_by=shlex.join(["fuser", "--verbose", path]),
        )


def _writes_to(process: Path, link: Path, family: list[Storage], system: System) -> bool:
    try:
        # Other files are not looked at: one of them may lie on a server that does not answer.
        if not str(link.readlink()).startswith("/dev/"):
            return False
    except OSError:
        return False
    if system.identify(str(link)) not in family:
        return False
    flags = re.search(r"^flags:\s*([0-7]+)$", _text(process / "fdinfo" / link.name), re.MULTILINE)
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


# --- how the kernel names things --------------------------------------------------------------


def _family(storage: Storage, system: System) -> list[Storage]:
    """Return a device with its partitions; for a file only itself."""
    if not storage.is_device:
        return [storage]
    parts = [entry for entry in _entries(_sysfs(storage, system)) if _text(entry / "partition")]
    return [storage, *_devices(parts)]


def _devices(directories: list[Path]) -> list[Storage]:
    """Return the devices that directories of sysfs tell of."""
    numbers = (re.fullmatch(r"(\d+):(\d+)", _text(directory / "dev")) for directory in directories)
    return [Storage(is_device=True, number=(int(one[1]), int(one[2]))) for one in numbers if one is not None]


def _sysfs(device: Storage, system: System) -> Path:
    return system.sys / "dev" / "block" / f"{device.number[0]}:{device.number[1]}"


def _name(device: Storage, system: System) -> str:
    return _node(_sysfs(device, system).resolve().name)


def _node(name: str) -> str:
    # sysfs has an exclamation mark where the name of the device has a slash.
    return f"/dev/{name.replace('!', '/')}"


def _split(number: int) -> tuple[int, int]:
    return os.major(number), os.minor(number)


def _entries(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(directory.iterdir())
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _unescape(field: str) -> str:
    """Return a field of a table of the kernel with its octal escapes resolved."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
