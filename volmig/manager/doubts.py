"""Which volumes nobody can tell the place of."""

from __future__ import annotations

from typing import Final

from volmig import errors
from volmig.model import EntryKind, Migration
from volmig.store import MigrationQuery
from volmig.store.base import ReadTransaction

SETTLED: Final = "doubt-settled"
"""Subject of the note that says where the volume of a migration was found."""


def unsettled_doubt(view: ReadTransaction, volume_id: str) -> Migration | None:
    """Return the volume's last migration if that ended in doubt about its place, and the doubt still stands."""
    for last in view.list_migrations(MigrationQuery(volume_id=volume_id, limit=1)):
        if last.error_code == errors.LocationDoubtful.code and not any(
            entry.kind is EntryKind.NOTE and entry.subject == SETTLED for entry in view.read_journal(last.id)
        ):
            return last
    return None
