"""The page of release notes, from the files themselves: a tarball has no git history for reno to read.

``reno cache`` writes which release each note belongs to into ``reno.cache``, and that is part of a release. A note
that is not in it belongs to the version at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from volmigdoc import rst

SECTIONS = {
    "prelude": "",
    "features": "New",
    "issues": "Known limits",
    "upgrade": "When upgrading",
    "deprecations": "Deprecated",
    "critical": "Critical fixes",
    "security": "Security fixes",
    "fixes": "Fixes",
    "other": "Other",
}
"""Reno's sections in its order, and their headings here."""

Note = dict[str, Any]


def note_lines(directory: Path, version: str) -> list[str]:
    """Return the notes in *directory*, the newest release first.

    :param version: that of the notes which were in no release yet.
    :raises ValueError: when a note has a section that reno does not know.
    """
    lines: list[str] = []
    for release, notes in _by_release(directory, version):
        lines += [*rst.section(release, "-")]
        for key, title in SECTIONS.items():
            found = [note[key] for note in notes if note.get(key)]
            if found and title:
                lines += rst.section(title, "^")
            for content in found:
                lines += _prelude(content) if isinstance(content, str) else _items(content)
    return lines


def _by_release(directory: Path, version: str) -> Iterator[tuple[str, list[Note]]]:
    files = {path.name: _read(path) for path in sorted(directory.glob("*.yaml"))}
    cache = directory / "reno.cache"
    releases = yaml.safe_load(cache.read_text(encoding="utf-8"))["notes"] if cache.exists() else []
    released: dict[str, list[str]] = {
        release["version"]: [Path(name).name for name, _ in release["files"]] for release in releases
    }
    known = {name for names in released.values() for name in names}
    if fresh := [note for name, note in files.items() if name not in known]:
        yield version, fresh
    for release, names in released.items():
        yield release, [files[name] for name in names if name in files]


def _read(path: Path) -> Note:
    note = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(note, dict) or (unknown := set(note) - set(SECTIONS)):
        raise ValueError(f"{path.name} is not a release note{f': unknown sections {unknown}' if note else ''}")
    return note


def _prelude(content: str) -> list[str]:
    return [*content.strip().splitlines(), ""]


def _items(content: list[str]) -> list[str]:
    lines: list[str] = []
    for item in content:
        first, *rest = item.strip().splitlines()
        lines += [f"* {first}", *rst.indent(rest, 2), ""]
    return lines
