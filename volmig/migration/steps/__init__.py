"""The steps of a migration: what each does, and how it is undone."""

from __future__ import annotations

from collections.abc import Sequence

from volmig import errors
from volmig.migration.steps.base import CannotGoBack, Declined, Step
from volmig.migration.steps.data import Connect, Copy, Disconnect, VerifyCopy
from volmig.migration.steps.driver import CutOverDriverMove, DriverMove
from volmig.migration.steps.host import CreateDestination, CutOver, RetireSource
from volmig.migration.steps.rollback import CutOverToKept, VerifyUnchanged
from volmig.model import Method

__all__ = [
    "DRIVER_STEPS",
    "HOST_STEPS",
    "ROLLBACK_STEPS",
    "CannotGoBack",
    "Copy",
    "CreateDestination",
    "CutOver",
    "Declined",
    "Disconnect",
    "DriverMove",
    "RetireSource",
    "Step",
    "VerifyCopy",
    "steps_for",
]

HOST_STEPS: tuple[Step, ...] = (
    CreateDestination(),
    Connect(),
    Copy(),
    VerifyCopy(),
    Disconnect(),
    CutOver(),
    RetireSource(),
)

DRIVER_STEPS: tuple[Step, ...] = (DriverMove(), CutOverDriverMove())

ROLLBACK_STEPS: tuple[Step, ...] = (Connect(), VerifyUnchanged(), Disconnect(), CutOverToKept(), RetireSource())

_STEPS = {
    Method.DRIVER: DRIVER_STEPS,
    Method.BLOCK: HOST_STEPS,
    Method.FILE: HOST_STEPS,
    Method.ROLLBACK: ROLLBACK_STEPS,
}


def steps_for(method: Method) -> Sequence[Step]:
    """Return the steps of a method after ``reserve``, which is part of accepting the request."""
    if method not in _STEPS:
        raise errors.InternalError(reason=f"there are no steps for method {method.value}")
    return _STEPS[method]
