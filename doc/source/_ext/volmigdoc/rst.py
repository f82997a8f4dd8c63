"""Pieces of reStructuredText, as lists of lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\*`_|@<>])")
_COMMAND = re.compile(r"`([^`]+)`")


def text(words: object) -> str:
    """Return plain words so that they appear as they are; `backquoted` ones as code."""
    parts = _COMMAND.split(str(words))
    return "".join(code(part) if number % 2 else _SPECIAL.sub(r"\\\1", part) for number, part in enumerate(parts))


def code(words: object) -> str:
    """Return words as inline code; nothing for none."""
    return f"``{words}``" if str(words) else ""


def indent(lines: Iterable[str], by: int = 3) -> list[str]:
    """Return lines moved to the right."""
    return [f"{' ' * by}{line}" if line else "" for line in lines]


def section(title: str, underline: str, anchor: str = "") -> list[str]:
    """Return a heading, with a label if *anchor* is given."""
    label = [f".. _{anchor}:", ""] if anchor else []
    return [*label, title, underline * len(title), ""]


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, widths: Sequence[int]) -> list[str]:
    """Return a table; cells are reStructuredText and may have several lines."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in [headers, *rows]:
        marker = "*"
        for cell in row:
            first, *rest = cell.split("\n")
            lines.append(f"   {marker} - {first}".rstrip())
            lines += indent(rest, 7)
            marker = " "
    return [*lines, ""]
