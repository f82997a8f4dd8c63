"""Images made and read by the real programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from volmig.transfer.base import CopyJob, CopyOptions
from volmig.transfer.control import Control

MIB = 1024 * 1024
CONTENT = os.urandom(3 * MIB) + bytes(9 * MIB) + os.urandom(512) + bytes(MIB - 512) + os.urandom(3 * MIB)
"""Data, a hole, a lone sector, a hole, data: 16 MiB."""


def run(*command: str | Path, **more: Any) -> str:
    """Run a program that must succeed; a missing one is a failure, too."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_image(path: Path, format_name: str, content: bytes = CONTENT) -> Path:
    raw = path.with_name(f"{path.name}.content")
    raw.write_bytes(content)
    run("qemu-img", "convert", "-f", "raw", "-O", format_name, raw, path)
    raw.unlink()
    return path


def content_of(path: Path, format_name: str) -> bytes:
    raw = path.with_name(f"{path.name}.raw")
    run("qemu-img", "convert", "-f", format_name, "-O", "raw", path, raw)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def job(source: Any, destination: Any, size: int, control: Control | None = None, **options: Any) -> CopyJob:
    return CopyJob(
        source=source,
        destination=destination,
        size_bytes=size,
        options=CopyOptions(**options),
        control=control or Control(),
        advance=lambda *_: None,
        on_process=lambda _: None,
    )


def read_all(end: Any) -> bytes:
    data = bytearray(end.size_bytes)
    view, done = memoryview(data), 0
    while done < len(data):
        count = end.read_some(view[done : done + MIB], done)
        assert count > 0
        done += count
    return bytes(data)


@contextmanager
def served(*command: str | Path, socket: Path) -> Iterator[str]:
    """Run an NBD server in the foreground; yield the address of its export."""
    with subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True) as server:
        try:
            end = monotonic() + 10
            while not socket.exists():
                assert server.poll() is None, server.stderr.read() if server.stderr else ""
                assert monotonic() < end
                sleep(0.01)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            server.terminate()


@contextmanager
def nbdkit(path: Path, *arguments: str) -> Iterator[str]:
    """Serve a file by nbdkit."""
    socket = path.with_name(f"{path.name}.sock")
    with served("nbdkit", "-f", "-U", socket, *arguments, "file", path, socket=socket) as address:
        yield address


@contextmanager
def qemu_nbd(path: Path, *arguments: str) -> Iterator[str]:
    """Serve a raw file by qemu-nbd."""
    socket = path.with_name(f"{path.name}.sock")
    command = ["qemu-nbd", "-f", "raw", "--persistent", "--shared=8", f"--socket={socket}", *arguments, path]
    with served(*command, socket=socket) as address:
        yield address
