"""Diagrams show every state and every transition, and nothing lies upon anything else."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volmigdoc import diagram, states

from volmig.model import PHASE_TRANSITIONS, VOLUME_TRANSITIONS, Phase

_NODES = st.integers(1, 8).map(lambda count: tuple(f"state-{number}" for number in range(count)))


@st.composite
def graphs(draw):
    nodes = draw(_NODES)
    pairs = [(one, other) for one in nodes for other in nodes if one != other]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=16)) if pairs else []
    return diagram.Graph(nodes=nodes, edges=tuple(edges))


def _drawn(graph):
    """Return the transitions that can be followed along the lines of a layout, by the heads at their ends."""
    layout = diagram._layout(graph)
    found = set()
    for link in layout.links:
        at = link.upper
        while at != link.lower:
            below = [lower for upper, lower in layout.segments if upper == at]
            (at,) = [lower for lower in below if diagram._end(lower) == link.lower]
        if link.head_below:
            found.add((link.upper, link.lower))
        if link.head_above:
            found.add((link.lower, link.upper))
    return found


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_every_transition_is_drawn_and_no_other(graph):
    assert _drawn(graph) == set(graph.edges)


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_nothing_overlaps_and_lines_go_down(graph):
    layout = diagram._layout(graph)
    layer_of = layout.layer_of()
    for layer in layout.layers:
        for left, right in pairwise(layer):
            apart = (layout.width(left) + layout.width(right)) / 2
            assert layout.x[right] - layout.x[left] >= apart
    assert all(layer_of[lower] - layer_of[upper] == 1 for upper, lower in layout.segments)


@pytest.mark.parametrize(
    ("graph", "transitions"),
    [(states.phase_graph(), PHASE_TRANSITIONS), (states.volume_graph(), VOLUME_TRANSITIONS)],
)
def test_tables_of_the_model_are_drawn_whole(graph, transitions):
    assert set(graph.nodes) == {state.value for state in transitions}
    assert set(graph.edges) == {(start.value, end.value) for start, ends in transitions.items() for end in ends}
    svg = ElementTree.fromstring(diagram.svg(graph, title="A & B"))  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in svg.iter(f"{space}text")]
    assert set(graph.nodes) <= set(texts)
    told = svg.find(f"{space}desc").text
    assert all(f"{start} to {end}" in told for start, end in graph.edges)
    assert svg.find(f"{space}title").text == "A & B"


def test_phases_are_shown_with_their_public_word_and_ends_with_a_double_border():
    graph = states.phase_graph()
    assert graph.notes == {phase.value: phase.public_status.value for phase in Phase}
    svg = diagram.svg(graph, title="phases")
    assert svg.count("<rect") == len(Phase) + sum(phase.is_final for phase in Phase)
