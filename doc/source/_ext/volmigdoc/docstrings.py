"""The docstrings that stand below the members of an enum, which Python itself does not keep."""

from __future__ import annotations

import ast
import enum
import inspect
import textwrap


def member_docs(cls: type[enum.Enum]) -> dict[str, str]:
    """Return the docstring of each member of an enum, by the member's name.

    :raises ValueError: when a member has none.
    """
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{cls} is not a class")
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.Assign) and isinstance(following, ast.Expr):
            target, value = statement.targets[0], following.value
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[target.id] = " ".join(inspect.cleandoc(value.value).split())
    if missing := [member.name for member in cls if member.name not in docs]:
        raise ValueError(f"{cls.__name__}: no docstring below {', '.join(missing)}")
    return docs


def first_sentence(obj: object) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(obj) or "").split("\n\n")[0].split())
