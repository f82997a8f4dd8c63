"""The results in words and tables: for a terminal, and for the documentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.transfer.goals import Goal, goals, judged
from benchmarks.transfer.peers import DD
from benchmarks.transfer.results import GIB, Limit, Results, Row, Table, tables
from benchmarks.transfer.shapes import MIB

_NO_GOALS = "None can be judged from these runs."

SMALL_BYTES = GIB
"""Below this the start of programs weighs more than the copying."""

HEADINGS = (
    "wall s",
    "range",
    "to best peer",
    "to dd",
    "CPU s",
    "CPU s/GiB",
    "machine s",
    "peak MiB",
    "allocated MiB",
)


def text(results: Results) -> str:
    """Return everything for a terminal."""
    found = tables(results, DD)
    lines = [f"{name}: {value}" for name, value in results.facts.items()]
    lines += ["", *_setting_lines(results), *limit_lines(results), ""]
    for table in found:
        lines += [heading(results, table), *_text_table(results, table), ""]
    lines += ["Goals", *_text_goals(goals(found)), ""]
    lines += [f"Left out: {reason}" for reason in results.left_out]
    return "\n".join(lines).rstrip() + "\n"


def rst(results: Results, *, picture: str) -> str:
    """Return the part of the documentation that is made of results.

    :param picture: path of the plot, relative to the page; empty without one.
    """
    found = tables(results, DD)
    lines = [".. Written by python -m benchmarks.transfer; do not edit.", ""]
    lines += [f"Measured {results.settings['date']}. {line}" for line in _setting_lines(results)[:1]] + [""]
    lines += [f":{name}: {_escaped(value)}" for name, value in results.facts.items()] + [""]
    lines += [line for entry in limit_lines(results) for line in (_escaped(entry), "")]
    if picture:
        lines += [f".. image:: {picture}", "   :alt: Wall times of all copies, as in the tables below"]
        lines += ["   :width: 100%", ""]
    lines += _section("Goals"), "", *_rst_goals(results, goals(found))
    for table in found:
        lines += ["", _section(heading(results, table)), "", *_rst_table(results, table)]
    if results.left_out:
        lines += ["", _section("Left out"), ""]
        lines += [f"* {_escaped(reason)}" for reason in results.left_out]
    return "\n".join(lines).rstrip() + "\n"


def relative(picture: Path | None, page: Path) -> str:
    """Return the path by which a page names a picture."""
    return "" if picture is None else os.path.relpath(picture.resolve(), page.resolve().parent)


def heading(results: Results, table: Table) -> str:
    """Return the title of a table."""
    facts = results.shapes[table.shape]
    data = f"{facts.data_bytes / GIB:.3g} GiB" if facts.data_bytes >= GIB / 10 else f"{facts.data_bytes / MIB:.3g} MiB"
    size = f"{facts.size_bytes / GIB:.3g} GiB" if facts.size_bytes >= GIB else f"{facts.size_bytes / MIB:.3g} MiB"
    return f"{size}, {facts.title}, {results.kinds[table.kind]}: {data} of data"


def limit_lines(results: Results) -> list[str]:
    """Return what the disk itself could do."""
    return [_limit_line(results, limit) for limit in results.limits]


def cells(row: Row) -> list[str]:
    """Return a row's figures, as ``HEADINGS`` names them."""
    return [
        _seconds(row.wall.median),
        f"{_seconds(row.wall.low)}–{_seconds(row.wall.high)}",  # noqa: RUF001 - a range
        _ratio(row.to_best),
        _ratio(row.to_dd),
        _seconds(row.cpu_seconds),
        _seconds(row.cpu_per_gib),
        f"{row.busy_seconds:.2f}",
        f"{row.peak_bytes / MIB:.0f}",
        f"{row.allocated_bytes / MIB:.0f}",
    ]


def _setting_lines(results: Results) -> list[str]:
    settings = results.settings
    runs = "1 run" if settings["repeats"] == 1 else f"{settings['repeats']} runs"
    lines = [f"{runs} each, order rotating; medians. Seconds include fsync of the destination."]
    if settings["size_bytes"] < SMALL_BYTES:
        lines.append(
            f"Sources of {settings['size_bytes'] // MIB} MiB are small: this mostly measures how programs start."
        )
    return lines


def _limit_line(results: Results, limit: Limit) -> str:
    line = (
        f"The disk itself, {limit.when} ({limit.tool}): read {_rate(limit.read)}, write {_rate(limit.write)}, both at"
        f" once {_rate(limit.both_read)} and {_rate(limit.both_write)}"
    )
    dense = results.shapes.get("dense")
    if dense is None:
        return line + "."
    return f"{line}: {limit.copy_seconds(dense.data_bytes):.2f} s for a copy of {dense.data_bytes / GIB:.3g} GiB."


def _text_table(results: Results, table: Table) -> list[str]:
    ours, best = table.row(judged(table.kind)), table.best_peer()
    width = max([*(len(row.entry.title) for row in table.rows), 20]) + 2
    columns = [max(len(title), 13 if title == "range" else 7) for title in HEADINGS]
    lines = [" " * (width + 2) + "  ".join(title.rjust(size) for title, size in zip(HEADINGS, columns, strict=True))]
    for row in table.rows:
        mark = ">" if row is ours else "*" if row is best else " "
        figures = "  ".join(cell.rjust(size) for cell, size in zip(cells(row), columns, strict=True))
        lines.append(f"{mark} {row.entry.title:<{width}}{figures}{'' if row.is_checked else '  (not checked)'}")
    lines += [f"  {results.entrants[name].title}: FAILED: {error}" for name, error in table.failed.items()]
    means = {row.means: None for row in table.rows if row.means}
    return lines + [f"  volmig: {each}" for each in means]


def _text_goals(found: Sequence[Goal]) -> list[str]:
    if not found:
        return [f"  {_NO_GOALS}"]
    verdicts = {True: "met   ", False: "MISSED"}
    return [
        f"  {verdicts[goal.is_met]}  {goal.shape:<10}{goal.kind:<6}{goal.what}: {goal.found} ({goal.wanted})"
        for goal in found
    ]


def _rst_goals(results: Results, found: Sequence[Goal]) -> list[str]:
    if not found:
        return [_NO_GOALS]
    rows = [
        [
            "met" if goal.is_met else "**missed**",
            goal.shape,
            results.kinds[goal.kind],
            _escaped(goal.what),
            goal.found,
            goal.wanted,
        ]
        for goal in found
    ]
    return _list_table(["", "Shape", "Ends", "What", "Found", "Wanted"], rows)


def _rst_table(results: Results, table: Table) -> list[str]:
    best = table.best_peer()
    rows = []
    for row in table.rows:
        title = _escaped(row.entry.title)
        if row.entry.is_ours:
            title = f"**{title}**"
        notes = [note for note in ("best peer" if row is best else "", "" if row.is_checked else "not checked") if note]
        rows.append([f"{title} ({', '.join(notes)})" if notes else title, *cells(row)])
    lines = _list_table(["", *HEADINGS], rows)
    for name, error in table.failed.items():
        lines += ["", f"{_escaped(results.entrants[name].title)} failed: {_escaped(error)}"]
    for means in {row.means: None for row in table.rows if row.means}:
        lines += ["", f"volmig's means: {_escaped(means)}."]
    return lines


def _list_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [headings, *rows]:
        for number, cell in enumerate(row):
            lines.append(f"   {'*' if number == 0 else ' '} - {cell}".rstrip())
    return lines


def _section(title: str) -> str:
    return f"{title}\n{'-' * len(title)}"


def _escaped(words: str) -> str:
    for character in "\\*`_|":
        words = words.replace(character, "\\" + character)
    return words


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _rate(value: float) -> str:
    return f"{value / MIB:.0f} MiB/s"
