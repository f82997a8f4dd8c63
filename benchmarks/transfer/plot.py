"""A picture of the wall times: one panel for each shape and kind of ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.transfer.results import Results, Row, Table
from volmig.cli.sizes import format_size

OURS_COLOUR = "#1f4e79"
OURS_VERIFIED_COLOUR = "#7ba6cf"
BEST_PEER_COLOUR = "#8c8c8c"
PEER_COLOUR = "#dadada"
"""They differ in brightness, and so on paper without colours too."""
FONT_POINTS = 6.5


class PlotImpossible(Exception):
    """matplotlib is not installed."""


def draw(results: Results, tables: Sequence[Table], path: Path) -> None:
    """Write the picture as PNG.

    :raises PlotImpossible: without matplotlib.
    """
    require()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in results.kinds if any(table.kind == kind for table in tables)]
    names = [name for name in results.shapes if any(table.shape == name for table in tables)]
    lines = [name for name in results.entrants if any(name in (*_names(table), *table.failed) for table in tables)]
    figure, axes = pyplot.subplots(
        len(names),
        len(kinds),
        squeeze=False,
        sharey=True,
        figsize=(2.6 + 3.0 * len(kinds), (0.75 + 0.165 * len(lines)) * len(names) + 0.3),
    )
    for line, shape in enumerate(names):
        for column, kind in enumerate(kinds):
            panel = axes[line][column]
            table = next((table for table in tables if (table.kind, table.shape) == (kind, shape)), None)
            panel.set_title(_title(results, shape, kind), fontsize=FONT_POINTS, loc="left")
            _panel(panel, results, lines, table)
    figure.supxlabel("seconds, fsync included: medians, and the range of all runs; shorter is better", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=200, metadata={"Software": None})
    pyplot.close(figure)


def require() -> None:
    """Return when pictures can be drawn.

    :raises PlotImpossible: without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as exc:
        raise PlotImpossible("a plot needs matplotlib: install volmig with its extra bench") from exc
    del mpl


def _names(table: Table) -> list[str]:
    return [row.entrant for row in table.rows]


def _title(results: Results, shape: str, kind: str) -> str:
    facts = results.shapes[shape]
    return f"{format_size(facts.size_bytes)}, {results.kinds[kind]}:\n{facts.title}"


def _colour(row: Row, best: Row | None) -> str:
    if not row.entry.is_ours:
        return BEST_PEER_COLOUR if row is best else PEER_COLOUR
    return OURS_COLOUR if "verify=none" in row.entry.title else OURS_VERIFIED_COLOUR


def _panel(panel: Any, results: Results, lines: Sequence[str], table: Table | None) -> None:
    """Draw one panel, with a line for each entrant; all panels have the same lines."""
    titles = [results.entrants[name].title for name in lines]
    panel.set_yticks(range(len(lines)), titles, fontsize=FONT_POINTS)
    panel.set_ylim(len(lines) - 0.4, -0.6)
    for label, name in zip(panel.get_yticklabels(), lines, strict=False):  # a panel further right shows none
        label.set_fontweight("bold" if results.entrants[name].is_ours else "normal")
    panel.tick_params(axis="x", labelsize=FONT_POINTS)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", linewidth=0.3, color="#b0b0b0")
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    rows = {row.entrant: row for row in table.rows} if table is not None else {}
    longest = max((row.wall.high for row in rows.values()), default=1.0)
    panel.set_xlim(0, 1.16 * longest)
    for place, name in enumerate(lines):
        if name in rows and table is not None:
            _bar(panel, place, rows[name], _colour(rows[name], table.best_peer()), longest)
        else:
            words = "failed" if table is not None and name in table.failed else "not measured"
            panel.text(0.012 * longest, place, words, va="center", fontsize=FONT_POINTS, color="#707070")


def _bar(panel: Any, place: int, row: Row, colour: str, longest: float) -> None:
    wall = row.wall
    panel.barh(
        place,
        wall.median,
        height=0.74,
        xerr=[[wall.median - wall.low], [wall.high - wall.median]],
        color=colour,
        edgecolor="#404040",
        linewidth=0.4,
        error_kw={"elinewidth": 0.7, "ecolor": "#000000", "capsize": 1.5},
    )
    text = f"{wall.median:.2f}" if wall.median >= 0.1 else f"{wall.median:.3f}"
    weight = "bold" if row.entry.is_ours else "normal"
    panel.text(wall.high + 0.015 * longest, place, text, va="center", fontsize=FONT_POINTS, fontweight=weight)
