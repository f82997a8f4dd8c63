"""Diagrams of states as SVG, laid out in layers from top to bottom.

The layout is Sugiyama's: edges against the flow are turned for the time of it, each state gets a layer below all that
lead to it, long edges get a bend in each layer that they cross, and the order within a layer is the one with the
fewest crossings that a few sweeps find. Edges to one state share their bends, so that they arrive as one line. Two
transitions there and back are one line with two heads.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_WIDTH_OF_CHARACTER = 7.8
_BOX_HEIGHT = 40.0
_LAYER_STEP = 88.0
_GAP = 44.0
_BEND_WIDTH = 12.0
_PORT_STEP = 18.0
_MARGIN = 14.0
_HEAD = 8.0


@dataclass(frozen=True, kw_only=True)
class Graph:
    """States and the transitions between them."""

    nodes: tuple[str, ...]
    """The states; the first one is where all begins."""
    edges: tuple[tuple[str, str], ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """A second line for some states."""

    def is_final(self, node: str) -> bool:
        """Say whether nothing follows a state."""
        return all(start != node for start, _ in self.edges)


Point = str
"""A state, or a bend: ``>state@layer``."""


@dataclass(frozen=True)
class _Link:
    """One line of the layout, from a layer to a lower one."""

    upper: str
    lower: str
    head_below: bool
    head_above: bool


@dataclass
class _Layout:
    graph: Graph
    layers: list[list[Point]]
    segments: list[tuple[Point, Point]]
    links: list[_Link]
    x: dict[Point, float] = field(default_factory=dict)

    def width(self, point: Point) -> float:
        """Return how wide a state's box or a bend is."""
        if point.startswith(">"):
            return _BEND_WIDTH
        longest = max(len(point), len(self.graph.notes.get(point, "")) - 1)
        return longest * _WIDTH_OF_CHARACTER + 28

    def layer_of(self) -> dict[Point, int]:
        """Return the layer of each point."""
        return {point: number for number, layer in enumerate(self.layers) for point in layer}


def svg(graph: Graph, *, title: str) -> str:
    """Return the diagram of *graph*; *title* says what it shows to those who cannot see it."""
    layout = _layout(graph)
    right = max(layout.x[point] + layout.width(point) / 2 for layer in layout.layers for point in layer)
    width, height = right + _MARGIN, (len(layout.layers) - 1) * _LAYER_STEP + _BOX_HEIGHT + 2 * _MARGIN
    described = "; ".join(f"{start} to {end}" for start, end in graph.edges)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="states" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">',
        f"<title>{html.escape(title)}</title>",
        f"<desc>{html.escape(described)}</desc>",
        *_lines(layout),
        *(_box(layout, node) for node in graph.nodes),
        "</svg>",
    ]
    return "\n".join(parts)


# --- layout ---------------------------------------------------------------------------------------


def _layout(graph: Graph) -> _Layout:
    links = _links(graph)
    depth = _depths(graph, links)
    layers: list[list[Point]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in graph.nodes:
        layers[depth[node]].append(node)
    segments: dict[tuple[Point, Point], None] = {}
    for link in links:
        before: Point = link.upper
        for layer in range(depth[link.upper] + 1, depth[link.lower]):
            # One bend for all lines that go down to the same state.
            bend = f">{link.lower}@{layer}"
            if bend not in layers[layer]:
                layers[layer].append(bend)
            segments[before, bend] = None
            before = bend
        segments[before, link.lower] = None
    layout = _Layout(graph=graph, layers=layers, segments=list(segments), links=links)
    _order(layout)
    _place(layout)
    return layout


def _links(graph: Graph) -> list[_Link]:
    """Return each pair of states once, the upper one being what a walk from the beginning comes to first."""
    against = _against_the_flow(graph)
    edges = set(graph.edges)
    links: list[_Link] = []
    for start, end in graph.edges:
        both = (end, start) in edges
        if both and (start, end) in against:
            continue
        if (start, end) in against:
            links.append(_Link(upper=end, lower=start, head_below=False, head_above=True))
        else:
            links.append(_Link(upper=start, lower=end, head_below=True, head_above=both))
    return links


def _against_the_flow(graph: Graph) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    on_the_way: list[str] = []
    seen: set[str] = set()

    def walk(node: str) -> None:
        seen.add(node)
        on_the_way.append(node)
        for start, end in graph.edges:
            if start == node:
                if end in on_the_way:
                    found.add((start, end))
                elif end not in seen:
                    walk(end)
        on_the_way.pop()

    for node in graph.nodes:
        if node not in seen:
            walk(node)
    return found


def _depths(graph: Graph, links: Sequence[_Link]) -> dict[str, int]:
    depth = dict.fromkeys(graph.nodes, 0)
    for _ in graph.nodes:
        for link in links:
            depth[link.lower] = max(depth[link.lower], depth[link.upper] + 1)
    return depth


def _order(layout: _Layout) -> None:
    """Order each layer by the mean place of its neighbours, and keep the order with the fewest crossings."""
    best, fewest = [list(layer) for layer in layout.layers], _crossings(layout)
    for sweep in range(12):
        downwards = sweep % 2 == 0
        numbers = range(1, len(layout.layers)) if downwards else range(len(layout.layers) - 2, -1, -1)
        for number in numbers:
            fixed = layout.layers[number - 1 if downwards else number + 1]
            places = {point: place for place, point in enumerate(fixed)}
            layout.layers[number].sort(key=lambda point, places=places: _mean(layout, point, places))  # type: ignore[misc]
        crossings = _crossings(layout)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layout.layers], crossings
    layout.layers = best


def _mean(layout: _Layout, point: Point, places: Mapping[Point, float]) -> float:
    found = [places[other] for other in _neighbours(layout, point) if other in places]
    return sum(found) / len(found) if found else 0.0


def _neighbours(layout: _Layout, point: Point) -> Iterator[Point]:
    for upper, lower in layout.segments:
        if upper == point:
            yield lower
        elif lower == point:
            yield upper


def _crossings(layout: _Layout) -> int:
    place = {point: number for layer in layout.layers for number, point in enumerate(layer)}
    layer_of = layout.layer_of()
    crossings = 0
    for number, (upper, lower) in enumerate(layout.segments):
        for other_upper, other_lower in layout.segments[:number]:
            if layer_of[upper] == layer_of[other_upper]:
                apart = (place[upper] - place[other_upper]) * (place[lower] - place[other_lower])
                crossings += apart < 0
    return crossings


def _place(layout: _Layout) -> None:
    """Give each point its place: near its neighbours, and apart from those beside it."""
    for layer in layout.layers:
        at = 0.0
        for point in layer:
            layout.x[point] = at + layout.width(point) / 2
            at += layout.width(point) + _GAP
    for turn in range(60):
        for layer in layout.layers if turn % 2 == 0 else reversed(layout.layers):
            wanted = {point: _wanted(layout, point) for point in layer}
            _settle(layout, layer, wanted)
    left = min(layout.x[point] - layout.width(point) / 2 for point in layout.x)
    for point in layout.x:
        layout.x[point] += _MARGIN - left


def _wanted(layout: _Layout, point: Point) -> float:
    found = sorted(layout.x[other] for other in _neighbours(layout, point))
    return sum(found) / len(found) if found else layout.x[point]


def _settle(layout: _Layout, layer: Sequence[Point], wanted: Mapping[Point, float]) -> None:
    """Move the points of a layer towards where they want to be, pushing none into another."""

    def apart(left: Point, right: Point) -> float:
        return (layout.width(left) + layout.width(right)) / 2 + _GAP

    from_left = [wanted[point] for point in layer]
    for number, (left, right) in enumerate(pairwise(layer)):
        from_left[number + 1] = max(from_left[number + 1], from_left[number] + apart(left, right))
    from_right = [wanted[point] for point in layer]
    for number in range(len(layer) - 2, -1, -1):
        limit = from_right[number + 1] - apart(layer[number], layer[number + 1])
        from_right[number] = min(from_right[number], limit)
    # The mean of two orders that keep apart keeps apart too.
    for point, one, other in zip(layer, from_left, from_right, strict=True):
        layout.x[point] = (one + other) / 2


# --- drawing --------------------------------------------------------------------------------------


def _box(layout: _Layout, node: str) -> str:
    width, x, y = layout.width(node), layout.x[node], _top(layout.layer_of()[node])
    left, middle = x - width / 2, y + _BOX_HEIGHT / 2
    final, first = layout.graph.is_final(node), node == layout.graph.nodes[0]
    fill = "#e8eef4" if first else "#ffffff"
    parts = [
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BOX_HEIGHT:.1f}" rx="7" '
        f'fill="{fill}" stroke="#24425c" stroke-width="1.4"/>'
    ]
    if final:
        parts.append(
            f'<rect x="{left + 3:.1f}" y="{y + 3:.1f}" width="{width - 6:.1f}" height="{_BOX_HEIGHT - 6:.1f}" rx="5" '
            f'fill="none" stroke="#24425c" stroke-width="1"/>'
        )
    note = layout.graph.notes.get(node)
    parts.append(_text(node, x, middle + (-2 if note else 5), size=13.5, fill="#0b1c2a"))
    if note:
        parts.append(_text(note, x, middle + 13, size=11, fill="#4a6072"))
    return "".join(parts)


def _text(words: str, x: float, y: float, *, size: float, fill: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="sans-serif" font-size="{size}" fill="{fill}" '
        f'text-anchor="middle">{html.escape(words)}</text>'
    )


def _lines(layout: _Layout) -> Iterator[str]:
    layer_of = layout.layer_of()
    heads_below = {link.lower for link in layout.links if link.head_below}
    up = {(link.upper, link.lower) for link in layout.links if link.head_above}
    for upper, lower in layout.segments:
        x1, y1 = _port(layout, upper, lower), _top(layer_of[upper])
        x2, y2 = _port(layout, lower, upper), _top(layer_of[lower])
        y1 += _BOX_HEIGHT / 2 if upper.startswith(">") else _BOX_HEIGHT
        y2 += _BOX_HEIGHT / 2 if lower.startswith(">") else 0
        below = not lower.startswith(">") and lower in heads_below
        above = not upper.startswith(">") and (upper, _end(lower)) in up
        start, stop = y1 + (_HEAD if above else 0), y2 - (_HEAD if below else 0)
        middle = (start + stop) / 2
        yield (
            f'<path d="M{x1:.1f},{start:.1f} C{x1:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{stop:.1f}" '
            f'fill="none" stroke="#5b7183" stroke-width="1.5"/>'
        )
        if below:
            yield _head(x2, y2, -_HEAD)
        if above:
            yield _head(x1, y1, _HEAD)


def _head(x: float, y: float, back: float) -> str:
    return f'<path d="M{x:.1f},{y:.1f} l-4.5,{back:.1f} h9 z" fill="#5b7183"/>'


def _port(layout: _Layout, point: Point, other: Point) -> float:
    """Return where on *point*'s side the line from *other* arrives: in the order of the others, apart."""
    if point.startswith(">"):
        return layout.x[point]
    downwards = (point, other) in layout.segments
    side = [end if downwards else start for start, end in layout.segments if (start if downwards else end) == point]
    side.sort(key=lambda end: layout.x[end])
    step = min(_PORT_STEP, (layout.width(point) - 24) / max(len(side) - 1, 1))
    return layout.x[point] + (side.index(other) - (len(side) - 1) / 2) * step


def _end(point: Point) -> str:
    return point[1:].rpartition("@")[0] if point.startswith(">") else point


def _top(layer: int) -> float:
    return _MARGIN + layer * _LAYER_STEP
