"""The Sphinx side: directives that put the pieces made from code into pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from volmig import __version__
from volmigdoc import calls, catalogue, commands, endings, notes, options, states
from volmigdoc.diagram import Graph, svg

TEXTS: dict[str, Callable[[], list[str]]] = {
    "errors": catalogue.error_lines,
    "options": options.option_lines,
    "commands": commands.command_lines,
    "global-options": commands.global_option_lines,
    "output-options": commands.output_option_lines,
    "exit-statuses": commands.exit_status_lines,
    "volume-statuses": states.volume_status_lines,
    "phases": states.phase_lines,
    "migration-statuses": states.migration_status_lines,
    "methods": states.method_lines,
    "host-steps": states.host_step_lines,
    "driver-steps": states.driver_step_lines,
    "rollback-steps": states.rollback_step_lines,
    "driver-calls": calls.call_lines,
    "endings": endings.ending_lines,
    "capabilities": states.capability_lines,
}

GRAPHS: dict[str, tuple[Callable[[], Graph], str]] = {
    "phases": (states.phase_graph, "The phases of a migration, and which may follow which"),
    "volume-statuses": (states.volume_graph, "The statuses of a volume, and which may follow which"),
}


_RAISES = re.compile(r"(?P<sentence>\S.*\S) (?P<raises>:raises [\w.]+:.*)")


class FromCode(SphinxDirective):
    """``.. from-code:: NAME``: the text that code gives."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return it, parsed."""
        lines = TEXTS[self.arguments[0]]()
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class StateDiagram(SphinxDirective):
    """``.. state-diagram:: NAME``: a drawing in HTML; elsewhere the table beside it has to do."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return it as SVG within the page."""
        make, title = GRAPHS[self.arguments[0]]
        return [nodes.raw("", svg(make(), title=title), format="html")]


class ReleaseNotes(SphinxDirective):
    """``.. release-notes-of:: DIRECTORY``: the notes in a directory, relative to that of ``conf.py``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return them, parsed."""
        directory = (Path(self.env.srcdir) / self.arguments[0]).resolve()
        for path in sorted(directory.iterdir()):
            self.env.note_dependency(str(path))
        lines = notes.note_lines(directory, __version__)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def separate_raises(*event: Any) -> None:
    """Make fields of the ``:raises …:`` that short docstrings have behind their one sentence."""
    # As autodoc's event has it: the docstring's lines are the last argument, and are changed in place.
    lines: list[str] = event[-1]
    for number in reversed(range(len(lines))):
        if match := _RAISES.fullmatch(lines[number]):
            lines[number : number + 1] = [match["sentence"], "", match["raises"]]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.connect("autodoc-process-docstring", separate_raises)
    app.add_directive("from-code", FromCode)
    app.add_directive("state-diagram", StateDiagram)
    app.add_directive("release-notes-of", ReleaseNotes)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}
