"""``volmig demo``: see a migration within seconds, on directories of this machine and without privileges."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from volmig import errors
from volmig.cli import pattern, sizes
from volmig.cli.base import BaseCommand, command_line
from volmig.cli.following import run_to_end
from volmig.cli.interrupts import Interrupts
from volmig.cli.progress import is_live, progress_for
from volmig.cli.report import ExitStatus

if TYPE_CHECKING:
    from volmig.engine import Engine, MigrationHandle
    from volmig.model import Migration, Volume

DEFAULT_SIZE_BYTES = 256 * 1024**2 + 12345
_VISIBLE_RATE_BYTES = 64 * 1024**2
_BACKENDS = ("alpha", "beta")
_CONFIGURATION = """\
[DEFAULT]
enabled_backends = alpha, beta
host = demo
state_path = {directory}/state

[alpha]
volume_driver = file
file_directory = {directory}/alpha

[beta]
volume_driver = file
file_directory = {directory}/beta
"""


class Demo(BaseCommand):
    """Move a trial volume between two trial backends, and check every byte of it.

    Everything happens in a temporary directory, which is removed at the end; no privileges are needed.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--size",
            type=sizes.parse_size,
            default=DEFAULT_SIZE_BYTES,
            metavar="SIZE",
            help="size of the trial volume, such as 2GiB (a bare number is GiB); about 256 MiB unless given",
        )
        parser.add_argument("--keep", action="store_true", help="leave the directory, to look around in it")
        parser.add_argument(
            "--directory", metavar="DIR", help="where to make the temporary directory; the system's place unless given"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Play the demo."""
        # Signals wait from here on, so that the directory cannot be left behind by one.
        with Interrupts() as interrupts:
            directory = _make_directory(parsed_args.directory)
            try:
                _Play(self.app.stdout, directory, parsed_args.size, interrupts).run()
            except BaseException:
                if parsed_args.keep:
                    self.note(f"Kept {directory}.")
                raise
            finally:
                if not parsed_args.keep:
                    shutil.rmtree(directory)
            self._farewell(directory, keep=parsed_args.keep)
        return ExitStatus.SUCCESS

    def _farewell(self, directory: Path, *, keep: bool) -> None:
        say = self.app.stdout.write
        if not keep:
            say(f"Removed {directory}. `volmig demo --keep` leaves it, to look around in.\n")
            return
        files = [str(directory / "volmig.conf")]
        say(f"Kept {directory}. Look around:\n")
        for words in (
            ("volume", "list"),
            ("volume", "show", "demo"),
            ("migration", "list"),
            ("volume", "migrate", "--wait", "--force-host-copy", "demo", "demo@beta#beta"),
        ):
            say(f"  {command_line(files, *words)}\n")


def _make_directory(parent: str | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="volmig-demo-", dir=Path(parent).absolute() if parent else None))
    except OSError as error:
        raise errors.RequestInvalid(
            what=f"The directory {parent or tempfile.gettempdir()!r}", reason=error.strerror
        ) from error


class _Play:
    """The demo in its directory."""

    def __init__(self, out: TextIO, directory: Path, size_bytes: int, interrupts: Interrupts) -> None:
        self._out = out
        self._directory = directory
        self._size_bytes = size_bytes
        self._interrupts = interrupts
        self._colour = is_live(out) and not os.environ.get("NO_COLOR")
        self._steps = 0
        self._allocated: list[int] = []

    def run(self) -> None:
        from volmig import conf
        from volmig.cli.requester import requester
        from volmig.engine import Engine

        file = self._directory / "volmig.conf"
        for name in _BACKENDS:
            (self._directory / name).mkdir()
        file.write_text(_CONFIGURATION.format(directory=self._directory), encoding="utf-8")
        with Engine(conf.load([str(file)]), context=requester()) as engine:
            self._heading(f"Two backends in {self._directory}, and a volume with data on the first")
            volume = self._make_volume(engine)
            self._move_by_copy(engine, volume)
            self._move_by_driver(engine, volume)
        self._heading("Checked")
        self._say("  by volmig: what the destination gave back, read past the cache, has the digest of what was read")
        self._say("  by the demo: after each move, every byte of the file against the pattern, and its exact size")
        self._say(f"  room that the volume took: {self._rooms()}")
        self._say("")

    # --- the scenes ---------------------------------------------------------------------------

    def _make_volume(self, engine: Engine) -> Volume:
        volume = engine.create_volume(host="demo@alpha#alpha", size_bytes=self._size_bytes, name="demo")
        with Path(engine.volume_path(volume.id)).open("r+b") as image:
            pattern.write(image, self._size_bytes)
        self._say(
            f"  The volume has {self._size_bytes} bytes: data that differs at every place, written zeroes, holes."
        )
        self._interrupts.check()
        self._files()
        return volume

    def _move_by_copy(self, engine: Engine, volume: Volume) -> None:
        self._heading("From alpha to beta, copied by this host")
        self._say("  Both directories are on one file system, where the driver would just rename the file;")
        self._say("  the copy is forced here (--force-host-copy), as between storage that cannot do that.")
        limit_bytes = None
        if is_live(self._out):
            limit_bytes = _VISIBLE_RATE_BYTES
            self._say(f"  It is held to {sizes.format_rate(limit_bytes)} (--limit), so that there is something to see.")
        started = time.monotonic()
        migration = self._migrate(
            engine, volume, "demo@beta#beta", force_host_copy=True, bandwidth_limit_bytes=limit_bytes
        )
        seconds = time.monotonic() - started
        self._say(f"  Moved and verified in {seconds:.1f} s.")
        self._say(f"  source digest       {migration.source_digest}")
        self._say(f"  destination digest  {migration.destination_digest}")
        if not migration.source_digest or migration.source_digest != migration.destination_digest:
            raise errors.VerificationFailed(path=engine.volume_path(volume.id), offset=0)
        self._say(f"  {self._good('identical')} ({migration.digest_algorithm})")
        self._files()
        self._check(engine, volume)
        self._heading("Its history")
        self._history(engine, migration)

    def _move_by_driver(self, engine: Engine, volume: Volume) -> None:
        self._heading("Back from beta to alpha, left to the driver")
        started = time.monotonic()
        migration = self._migrate(engine, volume, "demo@alpha#alpha", force_host_copy=False)
        seconds = time.monotonic() - started
        if migration.method.value == "driver":
            self._say(f"  The driver renamed the file: {seconds:.2f} s, and no data moved.")
        else:
            self._say(f"  The driver could not, so that the data was copied again: {seconds:.1f} s.")
        self._files()
        self._check(engine, volume)

    def _migrate(
        self,
        engine: Engine,
        volume: Volume,
        destination: str,
        *,
        force_host_copy: bool,
        bandwidth_limit_bytes: int | None = None,
    ) -> Migration:
        self._interrupts.check()
        handle = engine.migrate(
            volume.id, destination, force_host_copy=force_host_copy, bandwidth_limit_bytes=bandwidth_limit_bytes
        )
        try:
            with progress_for(self._out) as progress:
                run_to_end(handle, progress, self._interrupts, follow_with=f"volmig migration show {handle.id}")
        except BaseException:
            # The output is gone, say. The engine closes only when the migration has ended.
            _cancel(handle)
            raise
        handle.result()
        return handle.status()

    # --- what is told between ------------------------------------------------------------------

    def _rooms(self) -> str:
        before, *after = map(sizes.format_approximate, self._allocated)
        smaller = "; the copy has holes where zeroes were written" if self._allocated[1] < self._allocated[0] else ""
        return f"{before} at first, {' and then '.join(after)}{smaller}"

    def _check(self, engine: Engine, volume: Volume) -> None:
        """Compare the file with the pattern, by code that has no part in the migration."""
        path = Path(engine.volume_path(volume.id))
        with path.open("rb", buffering=0) as image:
            different_at = pattern.first_difference(image, self._size_bytes)
        if different_at is not None:
            raise errors.VerificationFailed(path=path, offset=different_at)
        self._say(f"  {self._good('every byte is as it was written')} (the file, compared with the pattern anew)")

    def _files(self) -> None:
        for name in _BACKENDS:
            found = sorted((self._directory / name).glob("volume-*"))
            for path in found:
                state = path.stat()
                self._allocated.append(state.st_blocks * 512)
                self._say(
                    f"  {name}/{path.name}  {sizes.format_approximate(state.st_size)}, "
                    f"{sizes.format_approximate(state.st_blocks * 512)} of it allocated"
                )
            if not found:
                self._say(f"  {name}/  no volumes")

    def _history(self, engine: Engine, migration: Migration) -> None:
        journal = engine.history(migration.id)
        beginning = next((entry.at for entry in journal if entry.at), None)
        for entry in journal:
            if entry.kind.value == "intent":
                continue
            passed = (entry.at - beginning).total_seconds() if entry.at and beginning else 0.0
            self._say(f"  {passed:8.3f} s  {entry.kind.value:<6}  {entry.subject}")

    def _heading(self, text: str) -> None:
        self._steps += 1
        if self._steps > 1:
            self._say("")
        self._say(f"\033[1m{text}\033[0m" if self._colour else text)

    def _good(self, text: str) -> str:
        return f"\033[32m{text}\033[0m" if self._colour else text

    def _say(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()


def _cancel(handle: MigrationHandle) -> None:
    try:
        handle.cancel()
    except errors.CancelTooLate:
        return
