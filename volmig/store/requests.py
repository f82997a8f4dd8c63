"""What others than its owner may ask of a migration, as pure functions from a present record to the next one.

They need no epoch, and take nothing from the owner: it sees the request in the record when it next writes. A function
returns the present record itself when nothing is to be changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from volmig import errors
from volmig.model import Migration, Phase
from volmig.store import rules

CHANGED_FIELDS: Final = ("cancel_requested_by", "pause_requested_by", "phase", "bandwidth_limit_bytes")
"""The fields that requests change, beside the time."""

_WHY_NOT_PAUSED: Final[Mapping[Phase, str]] = {
    Phase.COMPLETING: "its data has arrived, and the volume is being switched over",
    Phase.SUCCESS: "it has succeeded already",
    Phase.CANCELLING: "it is being cancelled",
    Phase.CANCELLED: "it was cancelled",
    Phase.ROLLING_BACK: "it has failed, and what it began is being undone",
    Phase.ERROR: "it has failed",
}


def cancel_requested(present: Migration, *, requested_by: str, now: datetime) -> Migration:
    """Return the record after somebody has asked to cancel the migration."""
    _check_asker(present, "cancel", "cancel_requested_by", requested_by)
    if not present.phase.can_be_cancelled and present.phase is not Phase.CANCELLING:
        raise errors.CancelTooLate(migration=present.id, phase=present.phase.value)
    return _changed(present, {"cancel_requested_by": present.cancel_requested_by or requested_by}, now=now)


def pause_requested(present: Migration, *, requested_by: str, now: datetime) -> Migration:
    """Return the record after somebody has asked to pause the migration."""
    _check_asker(present, "pause", "pause_requested_by", requested_by)
    if present.phase is not Phase.PAUSED and not present.phase.can_be_paused:
        raise errors.PauseImpossible(migration=present.id, reason=_WHY_NOT_PAUSED[present.phase])
    if present.cancel_requested_by:
        raise errors.PauseImpossible(migration=present.id, reason=_WHY_NOT_PAUSED[Phase.CANCELLING])
    if present.phase is Phase.PAUSED:
        return present
    # Once a worker owns it, only the worker says when it has let go, however long its lease is over.
    rests = present.phase is Phase.QUEUED and not present.owner
    values = {
        "pause_requested_by": present.pause_requested_by or requested_by,
        "phase": Phase.PAUSED if rests else present.phase,
    }
    return _changed(present, values, now=now)


def resume_requested(present: Migration, *, requested_by: str, now: datetime) -> Migration:
    """Return the record after somebody has asked that the migration go on."""
    _check_asker(present, "resume", "requested_by", requested_by)
    _check_not_ended(present)
    phase = Phase.QUEUED if present.phase is Phase.PAUSED else present.phase
    return _changed(present, {"pause_requested_by": "", "phase": phase}, now=now)


def limit_requested(present: Migration, *, bandwidth_limit_bytes: int, now: datetime) -> Migration:
    """Return the record with another limit, in bytes a second; 0 for none."""
    is_whole = isinstance(bandwidth_limit_bytes, int) and not isinstance(bandwidth_limit_bytes, bool)
    if not is_whole or not 0 <= bandwidth_limit_bytes <= rules.LARGEST_INTEGER:
        raise errors.RequestInvalid(
            what="the bandwidth limit",
            reason=f"{bandwidth_limit_bytes!r} is not a whole number of bytes a second from 0 to "
            f"{rules.LARGEST_INTEGER}",
        )
    _check_not_ended(present)
    return _changed(present, {"bandwidth_limit_bytes": bandwidth_limit_bytes}, now=now)


def _check_asker(present: Migration, verb: str, name: str, requested_by: str) -> None:
    if not requested_by:
        raise errors.InternalError(reason=f"a request to {verb} migration {present.id} does not say who asks")
    rules.check_text(name, requested_by)


def _check_not_ended(present: Migration) -> None:
    if present.phase.is_final:
        raise errors.MigrationEnded(migration=present.id, phase=present.phase.value)


def _changed(present: Migration, values: Mapping[str, Any], *, now: datetime) -> Migration:
    if all(getattr(present, name) == value for name, value in values.items()):
        return present
    return dataclasses.replace(present, **values, updated_at=now)
