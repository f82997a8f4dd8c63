"""An image with all the files that it is made of, opened and checked, for programs that shall open nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from volmig import errors
from volmig.transfer.ends.base import failure
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.images.headers import HEAD_BYTES, TAIL_BYTES, HeaderInvalid, backing_of_qcow2, check_vmdk, probe

if TYPE_CHECKING:
    from types import TracebackType

    from volmig.transfer.base import CopyOptions
    from volmig.transfer.ends.base import OpenEnd

RAW = "raw"
FORMATS = frozenset({RAW, "qcow2", "vmdk", "vdi", "vhdx"})
"""The formats that can be translated."""
DEEPEST_CHAIN = 16
"""Most files of one chain."""

_HEADER_HINT = (
    "Whoever can write to the volume can forge this. If its record is right, repeat the request with the option that "
    "ignores the header; if the image is to be used, correct the record."
)


@dataclass(kw_only=True, slots=True)
class ImageFile:
    """One file of a chain."""

    end: FileEnd
    format: str

    def node(self) -> dict[str, Any]:
        """Return how QEMU is told of it. The descriptor is to be inherited by the program under its own number."""
        driver = "file" if self.end.is_regular else "host_device"
        return {
            "driver": self.format,
            "file": {"driver": driver, "filename": f"/proc/self/fd/{self.end.buffered}"},
        }


@dataclass(kw_only=True, slots=True)
class Chain:
    """An image and the files beneath it, the image first. All are open, for reading, until :meth:`close`."""

    files: list[ImageFile] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self.files:
            self.files.pop().end.close()

    @property
    def descriptors(self) -> Sequence[int]:
        """What a program must inherit to open :meth:`address`."""
        return tuple(file.end.buffered for file in self.files)

    @property
    def direct(self) -> bool:
        """Whether all files can be read past the cache."""
        return all(file.end.direct is not None for file in self.files)

    def address(self, size_bytes: int | None = None) -> str:
        """Return the image as QEMU's programs take it in place of a path.

        Every file and every format in it is named, and that there is no other: nothing is probed, and what the
        headers say of other files is not looked at any more.

        :param size_bytes: show the first bytes of the content only; a multiple of 512.
        """
        node: dict[str, Any] | None = None
        for file in reversed(self.files):
            below, node = node, file.node()
            if file.format in ("qcow2", "vmdk"):
                node["backing"] = below
        if size_bytes is not None:
            if node is not None and node["driver"] == RAW:
                node["size"] = size_bytes
            else:
                node = {"driver": RAW, "size": size_bytes, "file": node}
        return f"json:{json.dumps(node)}"

    def told(self, text: str) -> str:
        """Return what a program said with the names of the files in place of its descriptors."""
        for file in reversed(self.files):
            text = text.replace(f"/proc/self/fd/{file.end.buffered}", file.end.name)
        return text


def open_chain(path: str, format_name: str, options: CopyOptions, *, is_destination: bool = False) -> Chain:
    """Open the image at *path*, recorded with the format *format_name*, and what it is based on, and check all.

    A file must carry the header of its format, and one that is raw none of another (``options.ignore_header``). A
    backing file must be a regular file, directly in the image's own directory or anywhere beneath one of
    ``options.backing_directories``, after all symbolic links; the header above it must name its format.

    :raises volmig.errors.UnsupportedFormat: when something is not so, the chain goes in a circle or is deeper than
        16 files, or an image is encrypted or keeps its data in another file.
    :raises volmig.errors.TransferFailed: when a file cannot be opened or read.
    :raises volmig.errors.RequestInvalid: when the path is neither a regular file nor a block device.
    """
    chain = Chain()
    try:
        end = FileEnd(path, os.O_RDONLY, is_destination=is_destination)
        chain.files.append(ImageFile(end=end, format=format_name))
        own = Path(path).resolve().parent
        while True:
            backing = examine(chain.files[-1].end, chain.files[-1].format, options)
            if backing is None:
                return chain
            _append(chain, *backing, own, options)
    except BaseException:
        chain.close()
        raise


def examine(end: OpenEnd, format_name: str, options: CopyOptions) -> tuple[str, str] | None:
    """Check one image by its header; return name and format of its backing file, if it has one.

    :raises volmig.errors.UnsupportedFormat:
    """
    if format_name not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise errors.UnsupportedFormat(what=end.name, format=format_name, reason=f"only {known} can be read or written")
    read = _reader(end)
    carried = probe(read(HEAD_BYTES, 0), read(TAIL_BYTES, max(0, end.size_bytes - TAIL_BYTES)))
    if format_name == RAW:
        if carried and not options.ignore_header:
            reason = f"it carries the header of a {carried} image"
            raise errors.UnsupportedFormat(what=end.name, format=RAW, reason=reason, hint=_HEADER_HINT)
        return None
    if carried != format_name:
        reason = f"it carries the header of a {carried} image" if carried else "it does not carry such a header"
        hint = "Its record and its content differ: find out which is right, and correct the record."
        raise errors.UnsupportedFormat(what=end.name, format=format_name, reason=reason, hint=hint)
    try:
        if format_name == "vmdk":
            check_vmdk(read, end.size_bytes)
        backing = backing_of_qcow2(read) if format_name == "qcow2" else None
    except HeaderInvalid as exc:
        raise _unsafe(end.name, format_name, str(exc)) from exc
    return (backing.name, backing.format) if backing else None


def _append(chain: Chain, name: str, format_name: str, own: Path, options: CopyOptions) -> None:
    """Open a backing file that a header names, if it may be opened."""
    above = chain.files[-1]
    what = above.end.name

    def refuse(reason: str) -> errors.UnsupportedFormat:
        return _unsafe(what, above.format, f"its backing file {name!r} {reason}")

    if len(chain.files) >= DEEPEST_CHAIN:
        raise refuse(f"would be the file number {len(chain.files) + 1} of a chain, and {DEEPEST_CHAIN} are the most")
    if ":" in name.partition("/")[0]:
        raise refuse("is not named by a plain path")
    if format_name not in FORMATS:
        raise refuse(f"has the format {format_name!r}, which is not known")
    path = _resolved(own_directory(what) / name, refuse)
    directories = [_resolved(Path(directory), refuse) for directory in options.backing_directories]
    if path.parent != own and not any(path.is_relative_to(directory) for directory in directories):
        raise refuse("lies outside of the image's directory and of all that are allowed")
    if not path.is_file():
        raise refuse("is not a regular file, or not there")
    end = FileEnd(str(path), os.O_RDONLY | os.O_NOFOLLOW, is_destination=above.end.is_destination)
    chain.files.append(ImageFile(end=end, format=format_name))
    # Somebody may have exchanged a directory for a link since it was looked at.
    if not end.is_regular or Path(f"/proc/self/fd/{end.buffered}").readlink() != path:
        raise refuse("was exchanged while it was looked at")
    if any(file.end.identity == end.identity for file in chain.files[:-1]):
        raise refuse("is part of the chain already: it goes in a circle")


def own_directory(path: str) -> Path:
    """Return the directory in which the file that *path* leads to lies."""
    return Path(path).resolve().parent


def _resolved(path: Path, refuse: Callable[[str], errors.UnsupportedFormat]) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as exc:
        raise refuse(f"cannot be followed: {exc}") from exc


def _reader(end: OpenEnd) -> Callable[[int, int], bytes]:
    def read(length: int, offset: int) -> bytes:
        data = bytearray(max(0, min(length, end.size_bytes - offset)))
        view = memoryview(data)
        done = 0
        while done < len(data):
            try:
                count = end.read_some(view[done:], offset + done)
            except Exception as exc:
                # A handle raises what it likes.
                raise failure(end, exc, offset=offset + done, writing=False) from exc
            if not 0 <= count <= len(data) - done:
                raise errors.TransferFailed(
                    path=end.name, offset=offset + done, reason=f"reading gave {count} bytes, more than were asked for"
                )
            if not count:
                break
            done += count
        return bytes(data[:done])

    return read


def _unsafe(what: str, format_name: str, reason: str) -> errors.UnsupportedFormat:
    hint = "An image must stand alone, or be based on files in its own directory or in those that are allowed."
    return errors.UnsupportedFormat(what=what, format=format_name, reason=reason, hint=hint)
