"""An end that shows the content of an image: what a machine that uses it as its disk would read."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from volmig import errors
from volmig.transfer.ends.base import OpenEnd
from volmig.transfer.engines.process import TrackedProcess
from volmig.transfer.images.chains import Chain, open_chain
from volmig.transfer.nbd.end import NbdEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from volmig.transfer.base import CopyOptions, HelperProcess

PROGRAM = "qemu-nbd"
PACKAGE = "qemu-utils"
_START_SECONDS = 10.0
_POLL_SECONDS = 0.005
_CONNECTIONS = 4
_NOT_YET = frozenset({errno.ENOENT, errno.ECONNREFUSED})


class ImageEnd(OpenEnd):
    """The content of an image, for reading, served by a program of its own; :func:`open_image` makes one.

    Up to :attr:`concurrency` threads may read at once. Identity and version are those of the files that the image is
    made of. The program ends with :meth:`close`, and also when this process dies.
    """

    def __init__(self, chain: Chain, nbd: NbdEnd, resources: contextlib.ExitStack, *, name: str) -> None:
        self.name = name
        self.is_destination = nbd.is_destination
        self.concurrency = nbd.concurrency
        self.size_bytes = nbd.size_bytes
        self.identity = chain.files[0].end.identity
        self._chain = chain
        self._nbd = nbd
        self._resources = resources

    @property
    def identities(self) -> frozenset[tuple[str, ...]]:
        return frozenset().union(*(file.end.identities for file in self._chain.files))

    def close(self) -> None:
        """End the program, and let go of the files.

        :raises volmig.errors.TransferFailed: when the program hangs in the kernel.
        """
        self._resources.close()

    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        return self._nbd.extents(size_bytes, begin_bytes)

    def read_some(self, view: memoryview, offset: int) -> int:
        return self._nbd.read_some(view, offset)

    def write_some(self, view: memoryview, offset: int) -> int:
        raise OSError(errno.EROFS, "the content of an image is open for reading only")

    def flush(self) -> None:
        """Do nothing: nothing is written."""

    def drop_cache(self) -> None:
        for file in self._chain.files:
            file.end.drop_cache()

    def version(self) -> tuple[int, ...] | None:
        versions = [file.end.version() for file in self._chain.files]
        if any(version is None for version in versions):
            return None
        return tuple(number for version in versions for number in version or ())

    def settle(self) -> None:
        for file in self._chain.files:
            file.end.settle()

    def is_still_in_place(self) -> bool:
        return all(file.end.is_still_in_place() for file in self._chain.files)


def open_image(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002 - what everybody calls it
    *,
    options: CopyOptions,
    is_destination: bool,
    on_process: Callable[[HelperProcess], None] | None = None,
) -> ImageEnd:
    """Open the content of the image at *path* for reading.

    The image and what it is based on are checked, and opened, by :func:`volmig.transfer.images.chains.open_chain`; the
    program is given these open files and told each format, so that it probes nothing and opens nothing else. Reads go
    past the cache where all the files can do that.

    :param format: its recorded format: raw, qcow2, vmdk, vdi or vhdx.
    :param is_destination: whether it is the end that was written to; for messages.
    :param on_process: called with the program, before it begins.
    :raises volmig.errors.UnsupportedFormat: when the image is not what *format* says, or may not be used.
    :raises volmig.errors.ProgramMissing:
    :raises volmig.errors.TransferFailed: when it cannot be opened, or the program does not serve it within 10 s.
    """
    name = os.fsdecode(path)
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(open_chain(name, format, options, is_destination=is_destination))
        directory = tempfile.mkdtemp(prefix="volmig-")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        socket = f"{directory}/nbd.sock"
        process = stack.enter_context(
            TrackedProcess(_arguments(chain, socket), package=PACKAGE, descriptors=chain.descriptors)
        )
        if on_process is not None:
            on_process(process.helper)
        process.begin()
        nbd = stack.enter_context(_connected(name, socket, process, chain, is_destination=is_destination))
        # From now on nobody else can connect; the program ends when the last connection does.
        shutil.rmtree(directory, ignore_errors=True)
        return ImageEnd(chain, nbd, stack.pop_all(), name=name)


def _arguments(chain: Chain, socket: str) -> list[str]:
    return [
        PROGRAM,
        "--read-only",
        f"--socket={socket}",
        f"--shared={_CONNECTIONS}",
        f"--cache={'none' if chain.direct else 'writeback'}",
        chain.address(),
    ]


def _connected(name: str, socket: str, process: TrackedProcess, chain: Chain, *, is_destination: bool) -> NbdEnd:
    """Connect to the program as soon as it listens."""
    address = f"nbd+unix:///?socket={urllib.parse.quote(socket)}"
    deadline = time.monotonic() + _START_SECONDS
    while True:
        ended = process.wait(0 if Path(socket).exists() else _POLL_SECONDS)
        if ended is not None:
            said = chain.told(process.stderr()).strip() or f"status {ended} and no word"
            raise _unserved(name, said.splitlines()[-1][:400])
        try:
            return NbdEnd.connect(address, reads=True, writes=False, is_destination=is_destination)
        except errors.TransferFailed as exc:
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno not in _NOT_YET:
                raise _unserved(name, exc.message) from exc
            if time.monotonic() > deadline:
                raise _unserved(name, f"it does not listen after {_START_SECONDS:.0f} seconds") from exc


def _unserved(name: str, reason: str) -> errors.TransferFailed:
    return errors.TransferFailed(path=name, offset=0, reason=f"opening the image by {PROGRAM}: {reason}")
