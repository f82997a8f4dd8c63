"""A migration's history as people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volmig.cli.cells import show
from volmig.cli.report import printable

_REASON = "reason"


def history_lines(journal: Sequence[dict[str, Any]]) -> list[str]:
    """Return journal entries as lines with aligned columns: when, what kind, about what, who, why, and the facts.

    :param journal: as :func:`volmig.cli.cells.plain` gives it.
    """
    kinds = max((len(entry["kind"]) for entry in journal), default=0)
    subjects = max((len(entry["subject"]) for entry in journal), default=0)
    told = []
    for entry in journal:
        line = f"{entry['at'] or '-':<24}  {entry['kind']:<{kinds}}  {entry['subject']:<{subjects}}  "
        details = _details(entry["data"])
        told.append(line + f"{printable(entry['actor'])}{f'  {details}' if details else ''}")
    return told


def _details(data: Mapping[str, Any]) -> str:
    """Return the reason in its own words, and the other facts as pairs; what is empty says nothing."""
    told = {key: value for key, value in data.items() if value not in ({}, [])}
    reason = told.get(_REASON)
    if not isinstance(reason, str) or not reason:
        return show(told)
    facts = show({key: value for key, value in told.items() if key != _REASON})
    return f"{printable(reason)}{f'  ({facts})' if facts else ''}"
