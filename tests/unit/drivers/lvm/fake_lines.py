"""Command lines of LVM's programs, taken apart, and its reports, for the fakes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any


class Failed(Exception):
    def __init__(self, text: str) -> None:
        self.text = text


_VALUED = frozenset(
    {
        *(
            "-o",
            "-S",
            "--units",
            "--reportformat",
            "--name",
            "--size",
            "--virtualsize",
            "--thinpool",
            "--type",
            "--alloc",
        ),
        *(
            "--config",
            "--extents",
            "--chunksize",
            "--addtag",
            "--deltag",
            "--offset",
            "--length",
            "--setactivationskip",
            "--zero",
            "--interval",
        ),
    }
)


class Line:
    """A command line, taken apart."""

    def __init__(self, words: Sequence[str]) -> None:
        self.options: dict[str, str] = {}
        self._given: list[tuple[str, str]] = []
        self.flags: set[str] = set()
        self.rest: list[str] = []
        pending = list(words)
        while pending:
            word = pending.pop(0)
            if word in _VALUED:
                self.options[word] = pending.pop(0)
                self._given.append((word, self.options[word]))
            elif word.startswith("-"):
                self.flags.add(word)
            else:
                self.rest.append(word)

    def all(self, option: str) -> list[str]:
        """Return what an option was given, each time."""
        return [value for name, value in self._given if name == option]

    def selects(self, row: dict[str, Any]) -> bool:
        text = self.options.get("-S")
        if text is None:
            return True
        if " || " in text:
            return any(_holds(part, row) for part in text.split(" || "))
        return all(_holds(part, row) for part in text.split(" && "))


def _holds(part: str, row: dict[str, Any]) -> bool:
    match = re.fullmatch(r'(\w+)(=|!~)"?([^"]*?)"?', part)
    if match is None:
        raise Failed(f"Syntax error in selection: {part}")
    name, operator, value = match.groups()
    found = str(row[name])
    if operator == "!~":
        return not re.search(value, found)
    return found == (value.removesuffix("b") if name == "lv_size" else value)


def report(name: str, fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"report": [{name: [{field: str(row.get(field, "")) for field in fields} for row in rows]}]})
