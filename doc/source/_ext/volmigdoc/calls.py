"""How each call of a driver is treated, from :mod:`volmig.manager.policies`."""

from __future__ import annotations

from volmig.manager.policies import POLICIES, Repetition
from volmigdoc import rst
from volmigdoc.docstrings import member_docs


def call_lines() -> list[str]:
    """Return the table of the kinds of calls, and that of the driver's methods."""
    docs = member_docs(Repetition)
    kinds = [(rst.code(kind.value), docs[kind.name]) for kind in Repetition]
    methods = [
        (rst.code(method), rst.code(policy.repetition.value), policy.reason, rst.code(policy.timeout_option))
        for method, policy in POLICIES.items()
    ]
    return [
        *rst.table(("Treatment", "What happens when the storage fails a call for the moment"), kinds, widths=(15, 85)),
        *rst.table(("Method", "Treatment", "Since", "Its time"), methods, widths=(25, 12, 38, 25)),
    ]
