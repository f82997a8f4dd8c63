"""The kernel of the test bed: Debian's own, downloaded and unpacked into a cache, installed nowhere."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from volmig.testing.vm.errors import BedIncomplete

_META_PACKAGE = "linux-image-amd64"
_DOWNLOAD_SECONDS = 900


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """An unpacked kernel: its image, and the directory of its modules."""

    image: Path
    modules: Path


def default_cache() -> Path:
    """Return where downloads are kept: ``$XDG_CACHE_HOME/volmig/vm``, outside of any checkout."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if Path(base).is_absolute() else Path.home() / ".cache", "volmig", "vm")


class KernelCache:
    """Unpacked kernels in a directory; two processes may use it at once."""

    def __init__(self, directory: Path, *, programs: Sequence[str] = ()) -> None:
        self._directory = directory
        # For tests: a directory of stand-ins for apt-cache and the others comes first.
        self._path = os.pathsep.join([*programs, os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

    def kernel(self) -> Kernel:
        """Return the kernel that Debian's current package names; download it when it is not there.

        Where the package lists cannot be read, the newest kernel that was kept is taken.

        :raises BedIncomplete: no kernel is there and none can be downloaded.
        """
        package = self._current_package()
        if package is None:
            kept = sorted(self._directory.glob("linux-image-*"), key=_version_key)
            if not kept:
                raise BedIncomplete(
                    f"There is no kernel in {self._directory}, and apt knows no package {_META_PACKAGE}.",
                    hint="Run `apt-get update` on a Debian system for amd64, or give --cache a directory that has one.",
                )
            return self._open(kept[-1])
        place = self._directory / package
        if not place.exists():
            with self._lock():
                if not place.exists():
                    self._download(package, place)
        return self._open(place)

    def _current_package(self) -> str | None:
        said = self._run("apt-cache", "depends", "--important", _META_PACKAGE, must_succeed=False)
        found = re.search(r"^\s*Depends: (linux-image-[\w.+-]+)$", said, re.MULTILINE)
        return found.group(1) if found else None

    def _download(self, package: str, place: Path) -> None:
        """Make ``place`` whole or not at all: what is interrupted leaves only a directory that nobody looks at."""
        with tempfile.TemporaryDirectory(prefix="download-", dir=self._directory) as scratch:
            self._run("apt-get", "download", "-q", package, directory=Path(scratch))
            archives = sorted(Path(scratch).glob("*.deb"))
            if len(archives) != 1:
                raise BedIncomplete(f"apt-get download {package} left {len(archives)} packages instead of one.")
            unpacked = Path(scratch, "unpacked")
            self._run("dpkg", "-x", str(archives[0]), str(unpacked))
            self._run("depmod", "-b", str(unpacked), package.removeprefix("linux-image-"))
            unpacked.rename(place)

    @staticmethod
    def _open(place: Path) -> Kernel:
        release = place.name.removeprefix("linux-image-")
        kernel = Kernel(image=place / "boot" / f"vmlinuz-{release}", modules=place / "lib" / "modules" / release)
        if not kernel.image.is_file() or not (kernel.modules / "modules.dep").is_file():
            raise BedIncomplete(f"The kernel in {place} is not whole.", hint=f"Remove it: rm -r {place}")
        return kernel

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with Path(self._directory, "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _run(self, program: str, *arguments: str, directory: Path | None = None, must_succeed: bool = True) -> str:
        found = shutil.which(program, path=self._path)
        if found is None:
            if not must_succeed:
                return ""
            raise BedIncomplete(f"{program} is not installed.", hint="The kernel comes from a Debian package.")
        command = [found, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_DOWNLOAD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BedIncomplete(f"{' '.join(command)} did not end in {_DOWNLOAD_SECONDS} seconds.") from error
        if done.returncode != 0 and must_succeed:
            raise BedIncomplete(
                f"{' '.join(command)} failed with status {done.returncode}.",
                evidence=(done.stdout + done.stderr)[-2000:],
            )
        return done.stdout


def _version_key(place: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", place.name))
