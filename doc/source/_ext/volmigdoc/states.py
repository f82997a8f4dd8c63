"""Tables and diagrams of states, from :mod:`volmig.model.states`, and of steps, from :mod:`volmig.migration.steps`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from volmig import errors
from volmig.drivers.base import Capability
from volmig.migration.steps import DRIVER_STEPS, HOST_STEPS, ROLLBACK_STEPS, Step, steps_for
from volmig.model.states import (
    PHASE_TRANSITIONS,
    VOLUME_TRANSITIONS,
    Method,
    MigrationStatus,
    Phase,
    VolumeStatus,
)
from volmigdoc import rst
from volmigdoc.diagram import Graph
from volmigdoc.docstrings import first_sentence, member_docs

State = TypeVar("State", bound=enum.StrEnum)


def graph_of(transitions: Mapping[State, frozenset[State]], notes: Mapping[str, str]) -> Graph:
    """Return a table of transitions as a graph, in the order of the enum."""
    order = list(transitions)
    edges = [(start.value, end.value) for start in order for end in order if end in transitions[start]]
    return Graph(nodes=tuple(state.value for state in order), edges=tuple(edges), notes=notes)


def phase_graph() -> Graph:
    """Return the phases of a migration, each with the word that the volume shows for it."""
    return graph_of(PHASE_TRANSITIONS, {phase.value: phase.public_status.value for phase in Phase})


def volume_graph() -> Graph:
    """Return the statuses of a volume."""
    return graph_of(VOLUME_TRANSITIONS, {})


def volume_status_lines() -> list[str]:
    """Return the table of volume statuses."""
    docs = member_docs(VolumeStatus)
    rows = [
        (rst.code(status), docs[status.name], _names(VOLUME_TRANSITIONS[status], VolumeStatus))
        for status in VolumeStatus
    ]
    return rst.table(("Status", "Meaning", "May become"), rows, widths=(15, 55, 30))


def phase_lines() -> list[str]:
    """Return the table of phases."""
    docs = member_docs(Phase)
    rows = [
        (
            rst.code(phase),
            docs[phase.name],
            rst.code(phase.public_status),
            _answer(phase, phase.can_be_cancelled),
            "is" if phase is Phase.PAUSED else _answer(phase, phase.can_be_paused),
            _names(PHASE_TRANSITIONS[phase], Phase),
        )
        for phase in Phase
    ]
    headers = ("Phase", "Meaning", "Volume shows", "Cancel?", "Pause?", "May become")
    return rst.table(headers, rows, widths=(14, 36, 14, 8, 8, 20))


def _answer(phase: Phase, is_accepted: bool) -> str:
    return "yes" if is_accepted else "ended" if phase.is_final else "no"


def migration_status_lines() -> list[str]:
    """Return the table of the public words."""
    docs = member_docs(MigrationStatus)
    rows = [
        (
            rst.code(status),
            docs[status.name],
            ", ".join(rst.code(phase) for phase in Phase if phase.public_status is status),
        )
        for status in MigrationStatus
    ]
    return rst.table(("migration_status", "Meaning", "Phases"), rows, widths=(20, 50, 30))


def method_lines() -> list[str]:
    """Return the table of methods, with what this version can do of them."""
    docs = member_docs(Method)
    rows = [(rst.code(method), docs[method.name], "yes" if _has_steps(method) else "not yet") for method in Method]
    return rst.table(("Method", "Meaning", "In this version"), rows, widths=(15, 65, 20))


def capability_lines() -> list[str]:
    """Return the table of capabilities."""
    docs = member_docs(Capability)
    rows = [(rst.code(capability.name), docs[capability.name]) for capability in Capability]
    return rst.table(("Capability", "Promise"), rows, widths=(25, 75))


def host_step_lines() -> list[str]:
    """Return the table of the steps of a copy by the host."""
    return _steps(HOST_STEPS)


def driver_step_lines() -> list[str]:
    """Return the table of the steps of a driver's own migration."""
    return _steps(DRIVER_STEPS)


def rollback_step_lines() -> list[str]:
    """Return the table of the steps of a rollback."""
    return _steps(ROLLBACK_STEPS)


def _steps(steps: tuple[Step, ...]) -> list[str]:
    rows = [(rst.code(step.name), rst.code(step.phase), first_sentence(type(step))) for step in steps]
    return rst.table(("Step", "Phase", "What it does"), rows, widths=(24, 16, 60))


def _has_steps(method: Method) -> bool:
    try:
        return bool(steps_for(method))
    except errors.InternalError:
        return False


def _names(states: frozenset[State], order: type[State]) -> str:
    return ", ".join(rst.code(state) for state in order if state in states) or "nothing"
