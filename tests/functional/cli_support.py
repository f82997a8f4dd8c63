"""The command line as a process, on real files, with a configuration of its own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1024**2
REPOSITORY = Path(__file__).resolve().parents[2]
SLOW = "4MiB/s"
"""A rate at which a migration of the tests' volumes lasts long enough to be met half-way."""

_CONFIGURATION = """\
[DEFAULT]
enabled_backends = alpha, beta, gamma
host = here
state_path = {directory}/state

[migration]
heartbeat_seconds = 0.1
lease_seconds = 2.0

[alpha]
volume_driver = file
file_directory = {directory}/alpha

[beta]
volume_driver = file
file_directory = {directory}/beta

[gamma]
volume_driver = fake
fake_directory = {directory}/gamma
"""


def pattern(size_bytes: int, seed: int = 1) -> bytes:
    """Return data without any repetition in it."""
    import random

    return random.Random(seed).randbytes(size_bytes)


_OURS = ("NO_COLOR", "TERM", "COLUMNS", "HOME", "PYTHONUNBUFFERED")


def environment(**changes: str) -> dict[str, str]:
    """Return an environment for a child in which nothing depends on the caller's terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path, "TERM": "dumb", "HOME": "/nonexistent"} | changes


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Return the first true answer of *condition*."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} seconds in vain: {what}")
        time.sleep(0.05)
    return answer


@dataclass
class Cli:
    """Runs commands with the configuration in a directory."""

    directory: Path
    user: int | None = None
    env: dict[str, str] = field(default_factory=environment)

    @property
    def config(self) -> Path:
        return self.directory / "volmig.conf"

    def arguments(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "volmig.cli", "--config-file", str(self.config), *words]

    def __call__(self, *words: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; *check* is the exit status that it must have."""
        done = subprocess.run(
            self.arguments(*words),
            capture_output=True,
            text=True,
            timeout=90,
            env=self.env,
            stdin=subprocess.DEVNULL,
            user=self.user,
        )
        assert check is None or done.returncode == check, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "-f", "json").stdout)

    @contextlib.contextmanager
    def running(self, *words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the background; it is gone when the block ends."""
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        with subprocess.Popen(self.arguments(*words), env=self.env, stdin=subprocess.DEVNULL, **given) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    # --- what the tests need again and again ---------------------------------------------------

    def filled(self, name: str, size_bytes: int, pool: str = "here@alpha#alpha") -> tuple[dict[str, Any], bytes]:
        """Create a volume with data; return its record and the data."""
        volume = self.json("volume", "create", "--host", pool, "--size", f"{size_bytes}B", "--name", name)
        data = pattern(size_bytes, seed=len(name))
        [file] = self.files(pool.split("#")[1], volume["id"])
        file.write_bytes(data)
        return volume, data

    def files(self, backend: str, volume_id: str = "") -> list[Path]:
        """Return the files of volumes in a backend's directory."""
        found = (self.directory / backend).rglob("*")
        return sorted(path for path in found if path.is_file() and "volume-" in path.name and volume_id in path.name)

    def migration(self, migration_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.json("migration", "show", migration_id)
        return shown

    def moving(self, volume: str) -> dict[str, Any]:
        """Return the migration of a volume as soon as its data is on the way."""

        def look() -> dict[str, Any] | None:
            found = self.json("migration", "list", "--volume", volume, "--active", "--long")
            return found[0] if found and found[0]["phase"] == "migrating" and found[0]["bytes_done"] else None

        moving: dict[str, Any] = until(look, f"{volume} is being moved")
        return moving


def make_cli(directory: Path) -> Cli:
    """Return a command line with two file backends and a fake one."""
    for name in ("alpha", "beta", "gamma"):
        (directory / name).mkdir()
    cli = Cli(directory)
    cli.config.write_text(_CONFIGURATION.format(directory=directory))
    return cli


@contextlib.contextmanager
def terminal(rows: int = 40, columns: int = 120) -> Iterator[tuple[int, int]]:
    """Give both ends of a pseudo-terminal: that of the test, and that of the program."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        yield ours, theirs
    finally:
        os.close(ours)
        with contextlib.suppress(OSError):
            os.close(theirs)


def read_terminal(ours: int, process: subprocess.Popen[Any], seconds: float = 60.0) -> str:
    """Return all that a process writes to its terminal until it ends; the test must have closed the other end."""
    text, end = bytearray(), time.monotonic() + seconds
    while time.monotonic() < end:
        ready, _, _ = select.select([ours], [], [], 0.2)
        if not ready:
            if process.poll() is not None:
                break
            continue
        try:
            piece = os.read(ours, 65536)
        except OSError as error:
            if error.errno == errno.EIO:  # everybody has closed it
                break
            raise
        text += piece
    return text.decode()


def interrupt(process: subprocess.Popen[Any], number: int = signal.SIGINT) -> None:
    process.send_signal(number)


def worker_of(migration: dict[str, Any]) -> int:
    """Return the process id of a migration's worker."""
    return int(migration["owner"].split(":")[1])
