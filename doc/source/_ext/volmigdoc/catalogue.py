"""The page of errors, from :func:`volmig.errors.catalogue`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from volmig import errors
from volmig.cli.report import exit_status
from volmigdoc import rst

_FIELD = re.compile(r"\{(\w+)(?:![rsa])?(?::[^}]*)?\}")

TITLES: dict[type[errors.VolmigError], str] = {
    errors.RequestError: "Change the request",
    errors.ConfigurationError: "Change the configuration",
    errors.TemporaryError: "Try again later",
    errors.OperatorError: "Call an operator",
    errors.BugError: "Report a bug",
    errors.CancelledError: "Somebody asked for it",
}


def category(cls: type[errors.VolmigError]) -> type[errors.VolmigError]:
    """Return the category of an error. :raises ValueError: when it has none."""
    for found in TITLES:
        if issubclass(cls, found):
            return found
    raise ValueError(f"{cls.__name__} belongs to no category")


def shown(template: str) -> str:
    """Return a template with its fields as ``<field>``."""
    return _FIELD.sub(r"<\1>", template)


def error_lines() -> list[str]:
    """Return the sections of all errors, by what the caller can do about them."""
    by_category: dict[type[errors.VolmigError], list[type[errors.VolmigError]]] = {found: [] for found in TITLES}
    for cls in errors.catalogue():
        by_category[category(cls)].append(cls)
    lines: list[str] = []
    for found, members in by_category.items():
        lines += rst.section(TITLES[found], "-")
        lines += [*_described(found), f"Exit status {_status(members[0])}.", ""]
        for cls in members:
            lines += _one(cls)
    return lines


def _one(cls: type[errors.VolmigError]) -> Iterator[str]:
    yield from rst.section(cls.code, "^", f"error-{cls.code}")
    yield from _described(cls)
    yield from (".. code-block:: text", "   :class: wrapped", "")
    yield f"   volmig: {shown(cls.template)} [{cls.code}]"
    if cls.hint_template:
        yield f"   hint: {shown(cls.hint_template)}"
    yield ""


def _described(cls: type[errors.VolmigError]) -> Iterator[str]:
    """Yield the class with its docstring, as the target of all references to it."""
    yield from (f".. py:exception:: volmig.errors.{cls.__name__}", "   :no-contents-entry:", "")
    yield from rst.indent(inspect.cleandoc(cls.__doc__ or "").splitlines())
    yield ""


def _status(cls: type[errors.VolmigError]) -> int:
    return int(exit_status(cls(**dict.fromkeys(cls.field_names(), "x"))))
