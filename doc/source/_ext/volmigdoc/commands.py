"""The page of commands, from their parsers."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from volmig.cli.app import VolmigApp
from volmig.cli.report import ExitStatus
from volmigdoc import rst
from volmigdoc.docstrings import member_docs

NAMESPACE = "volmig.cli"
_OWN_GROUPS = frozenset({"positional arguments", "options"})


def commands() -> dict[str, type[Any]]:
    """Return the classes of all commands, by the words that call them."""
    points = importlib.metadata.entry_points(group=NAMESPACE)
    return {point.name.replace("_", " "): point.load() for point in sorted(points, key=lambda point: point.name)}


def command_lines() -> list[str]:
    """Return a section for each command."""
    lines: list[str] = []
    for name, cls in commands().items():
        parser = _parser(name, cls)
        lines += rst.section(f"volmig {name}", "^", f"command-{name.replace(' ', '-')}")
        lines += [".. code-block:: text", "", *rst.indent(usage(name, parser)), ""]
        summary, _, rest = (inspect.getdoc(cls) or "").partition("\n")
        lines += [f"{rst.text(summary.rstrip('.'))}.", "", *map(rst.text, rest.strip().splitlines()), ""]
        lines += _actions(own_actions(parser))
        if columns := getattr(cls, "columns", ()):
            brief = getattr(cls, "brief", ())
            lines += [f"Columns: {', '.join(map(rst.code, columns))}.", ""]
            if brief:
                lines += [f"Shown without ``--long`` or ``-c``: {', '.join(map(rst.code, brief))}.", ""]
    return lines


def global_option_lines() -> list[str]:
    """Return the options that stand before or after any command."""
    return _actions(VolmigApp().parser._actions)


def output_option_lines() -> list[str]:
    """Return the options by which all commands that show something choose the form of it."""
    found: dict[str, argparse.Action] = {}
    choices: dict[str, set[str]] = {}
    for name, cls in commands().items():
        parser = _parser(name, cls)
        own = own_actions(parser)
        for action in parser._actions:
            if action not in own and action.option_strings and action.dest != "help":
                option = action.option_strings[0]
                found.setdefault(option, action)
                choices.setdefault(option, set()).update(map(str, action.choices or ()))
    for option, action in found.items():
        # A list knows other formats than a single thing does.
        action.choices = sorted(choices[option]) or None
    return _actions(found.values())


def exit_status_lines() -> list[str]:
    """Return the table of exit statuses."""
    docs = member_docs(ExitStatus)
    rows = [(str(int(status)), docs[status.name]) for status in ExitStatus]
    return rst.table(("Status", "Meaning"), rows, widths=(15, 85))


def own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments that are the command's own, without those of the output's form."""
    actions: list[argparse.Action] = []
    for group in parser._action_groups:
        if group.title in _OWN_GROUPS:
            actions += [action for action in group._group_actions if action.dest != "help"]
    return actions


def usage(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return the usage of a command with its own arguments, one option a line when they are many."""
    words = [_usage_of(action) for action in own_actions(parser)]
    line = " ".join(["volmig", name, *words])
    if len(line) <= 90:
        return [line]
    return [f"volmig {name}", *rst.indent(words, 4)]


def _parser(name: str, cls: type[Any]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = cls(VolmigApp(), None).get_parser(f"volmig {name}")
    return parser


def _usage_of(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"{_placeholder(action)}{' …' if action.nargs == '+' else ''}"
    option = action.option_strings[-1]
    word = f"{option} {_placeholder(action)}" if action.nargs != 0 else option
    return word if action.required else f"[{word}]"


def _placeholder(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _actions(actions: Iterable[argparse.Action]) -> list[str]:
    return [line for action in actions if action.help is not argparse.SUPPRESS for line in _definition(action)]


def _definition(action: argparse.Action) -> Iterator[str]:
    names = ", ".join(rst.code(option) for option in action.option_strings)
    if action.nargs != 0:
        names = f"{names} {rst.code(_placeholder(action))}".strip()
    yield names
    told = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").strip().rstrip(".")
    yield f"   {rst.text(told[:1].upper() + told[1:])}." if told else "   \\"
    yield ""
