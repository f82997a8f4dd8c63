from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from volmig.cli.cells import plain
from volmig.cli.history import history_lines
from volmig.model import EntryKind, JournalEntry

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


def entry(kind: EntryKind, subject: str, actor: str = "h:7:ab", **data: Any) -> JournalEntry:
    return JournalEntry(migration_id="m", kind=kind, subject=subject, actor=actor, data=data, at=AT)


def lines(*journal: JournalEntry) -> list[str]:
    return history_lines([plain(each) for each in journal])


def test_each_line_tells_when_what_who_and_why() -> None:
    told = lines(
        entry(EntryKind.PHASE, "queued", "root", volume="v", source="h@a#a"),
        entry(EntryKind.REQUEST, "limit", "eve", bandwidth_limit_bytes=5),
        entry(EntryKind.PHASE, "rolling_back", reason="No space is left."),
        entry(EntryKind.DONE, "cut_over", metadata={}),
    )
    assert told == [
        "2026-11-20T12:00:00.000Z  phase    queued        root  volume=v, source=h@a#a",
        "2026-11-20T12:00:00.000Z  request  limit         eve  bandwidth_limit_bytes=5",
        "2026-11-20T12:00:00.000Z  phase    rolling_back  h:7:ab  No space is left.",
        "2026-11-20T12:00:00.000Z  done     cut_over      h:7:ab",
    ]


def test_a_reason_stands_before_the_other_facts_and_disturbs_no_terminal() -> None:
    [told] = lines(entry(EntryKind.UNDONE, "driver_move", reason="declined\x1b[2J", method="block"))
    assert told.endswith("h:7:ab  declined\\x1b[2J  (method=block)")


def test_a_reason_that_is_no_text_is_a_fact() -> None:
    [told] = lines(entry(EntryKind.NOTE, "x", reason={"a": 1}))
    assert told.endswith("reason=a=1")
