"""The few things that are done to the kernel's configuration file system.

Each call does one operation and succeeds when it is done already, so that a sequence of them can be cut off anywhere
and be repeated.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class ConfigFs:
    """A subtree in which directories are kernel objects, and files are their attributes.

    :param root: where the subtree is mounted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, relative: str) -> Path:
        """Return the full path of an entry."""
        return self.root / relative

    def exists(self, relative: str) -> bool:
        return os.path.lexists(self.path(relative))

    def make(self, relative: str) -> None:
        """Make an object and those above it that are missing."""
        for parent in reversed(self.path(relative).parents):
            if self.root in parent.parents and not parent.exists():
                self._make(parent)
        if not self.exists(relative):
            self._make(self.path(relative))

    def _make(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def read(self, relative: str) -> str:
        """Return an attribute without the line's end."""
        return self.path(relative).read_text().strip()

    def write(self, relative: str, value: str) -> None:
        """Set an attribute. The kernel takes a value in one piece, and says by an OSError that it does not."""
        fd = os.open(self.path(relative), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def put(self, relative: str, value: str) -> None:
        """Set an attribute unless it has the value: many cannot be set once the object is in use."""
        if self.read(relative) != value:
            self.write(relative, value)

    def link(self, relative: str, target: str) -> None:
        """Link one object to another, in place of any other link of that name."""
        path = self.path(relative)
        if path.is_symlink():
            if path.resolve() == self.path(target).resolve():
                return
            self.unlink(relative)
        path.symlink_to(self.path(target))

    def unlink(self, relative: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(relative).unlink()

    def remove(self, relative: str) -> None:
        """Remove an object that has nothing of ours below it."""
        with contextlib.suppress(FileNotFoundError):
            self.path(relative).rmdir()

    def objects(self, relative: str) -> list[str]:
        """Return the names of the objects in a directory, without links and attributes; none if there is no such."""
        return self._names(relative, links=False)

    def links(self, relative: str) -> list[str]:
        """Return the names of the links in a directory; none if there is no such."""
        return self._names(relative, links=True)

    def _names(self, relative: str, *, links: bool) -> list[str]:
        try:
            with os.scandir(self.path(relative)) as entries:
                found = [entry for entry in entries if entry.is_symlink() == links]
                return sorted(entry.name for entry in found if links or entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
