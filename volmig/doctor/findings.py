"""What the doctor finds, and what came of mending it."""

from __future__ import annotations

import enum
import shlex
from dataclasses import dataclass, field


class Severity(enum.StrEnum):
    """How urgent a finding is."""

    CRITICAL = "critical"
    """Data is at risk, or nobody can use a volume."""
    WARNING = "warning"
    """Something is left over or stuck, and takes room or holds something up."""
    INFO = "info"
    """Worth knowing; nothing has to be done."""


class Code(enum.StrEnum):
    """What was found. The words are stable, so that programs may compare them."""

    VOLUME_MISSING = "volume-missing"
    """There is no object of a volume at its recorded place."""
    VOLUME_UNUSABLE = "volume-unusable"
    """There is something at a volume's recorded place that its driver refuses, such as a symbolic link."""
    SIZE_DIFFERS = "size-differs"
    """A volume's object has another size than recorded."""
    LOCATION_DOUBTFUL = "location-doubtful"
    """A migration could not tell in which of two places the volume is; nothing was deleted."""
    VOLUME_LOCKED = "volume-locked"
    """A volume is locked by a migration that has ended, or that is not on record."""
    VOLUME_STUCK = "volume-stuck"
    """A volume is in status ``maintenance``, and no migration moves it."""
    VOLUME_IN_ERROR = "volume-in-error"
    """An operation on a volume failed halfway."""
    REQUEST_ABANDONED = "request-abandoned"
    """The process is gone that was creating, extending, snapshotting, retyping or deleting a volume."""
    MIGRATION_ABANDONED = "migration-abandoned"
    """The worker of a migration is gone, or it never had one."""
    HELPER_RUNNING = "helper-running"
    """A program that copied for a migration still runs, though the migration has ended or its worker is gone."""
    LEFTOVER_COPY = "leftover-copy"
    """An object that a migration made, and that has ended without it."""
    UNKNOWN_OBJECT = "unknown-object"
    """An object that is named as a volume's, and belongs to nothing that is on record."""
    RETIRED_OVERDUE = "retired-overdue"
    """Old storage that should have been deleted by now."""
    EXPORT_STALE = "export-stale"
    """A volume is shown to other hosts, and by the records nobody uses it."""
    RESERVATION_STALE = "reservation-stale"
    """Room is reserved for something that has ended."""
    CHECKPOINT_STALE = "checkpoint-stale"
    """The checkpoint of a migration that has ended, or that is not on record."""
    BACKEND_DOWN = "backend-down"
    """A backend, or one of its pools, is out of service; what is in it could not be examined."""
    POOL_UNKNOWN = "pool-unknown"
    """Volumes are recorded in a pool that their backend does not have."""
    CALLS_HANGING = "calls-hanging"
    """Calls of a driver were given up by this process, and still run."""
    MIGRATION_PAUSED = "migration-paused"
    """A migration is paused on request; its volume stays locked."""
    FOREIGN_OBJECT = "foreign-object"
    """An object beside the volumes that has none of their names; most likely somebody else's."""
    BACKEND_UNLISTED = "backend-unlisted"
    """A backend cannot tell what is in it, so that leftovers and wrong sizes are not found."""
    NOT_CONFIGURED = "not-configured"
    """Volumes are of a host or a backend that is not configured here, and were not examined."""

    @property
    def severity(self) -> Severity:
        """How urgent it is."""
        return _SEVERITY[self]


_CRITICAL = (
    Code.VOLUME_MISSING,
    Code.VOLUME_UNUSABLE,
    Code.SIZE_DIFFERS,
    Code.LOCATION_DOUBTFUL,
    Code.VOLUME_LOCKED,
    Code.VOLUME_STUCK,
)
_INFO = (Code.MIGRATION_PAUSED, Code.FOREIGN_OBJECT, Code.BACKEND_UNLISTED, Code.NOT_CONFIGURED)
_SEVERITY = {
    code: Severity.CRITICAL if code in _CRITICAL else Severity.INFO if code in _INFO else Severity.WARNING
    for code in Code
}
_ORDER = {code: number for number, code in enumerate(Code)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    code: Code
    what: str
    """What it is about: the id of a volume or a migration, the name of an object, a backend."""
    places: tuple[str, ...] = ()
    """Where that is: pools (``host@backend#pool``), a backend (``host@backend``) or a host."""
    explanation: str
    """What was found, what it means and what can be done, in whole sentences."""
    words: tuple[str, ...]
    """The command that settles it, or shows more where nobody but a person can; without ``volmig``."""
    safe: bool = False
    """Whether :func:`volmig.doctor.mend` does something about it, and nothing can be lost by that."""
    volume_id: str = ""
    migration_id: str = ""
    facts: tuple[str, ...] = field(default=(), repr=False)
    """What else identifies it, for mending."""

    @property
    def severity(self) -> Severity:
        """How urgent it is."""
        return self.code.severity

    @property
    def where(self) -> str:
        """The places, as one text."""
        return " or ".join(self.places)

    @property
    def command(self) -> str:
        """The command that settles it, to be pasted into a shell."""
        return shlex.join(["volmig", *self.words])

    @property
    def key(self) -> tuple[str, ...]:
        """What is equal for the same finding of another examination."""
        return (self.code.value, self.what, *self.places, *self.facts)

    @property
    def order(self) -> tuple[int, tuple[str, ...]]:
        """A key that sorts the most urgent ones first."""
        return _ORDER[self.code] + 100 * list(Severity).index(self.severity), self.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one examination has found."""

    findings: tuple[Finding, ...]
    """The most urgent first."""
    volumes: int
    """How many volumes are on record."""
    objects: int
    """How many objects the backends have told of."""
    backends: int
    """How many backends were asked."""

    def count(self, severity: Severity) -> int:
        """Return how many findings there are of that severity."""
        return sum(finding.severity is severity for finding in self.findings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mended:
    """What came of one finding that is safe to mend."""

    finding: Finding
    done: bool
    """Whether it is settled."""
    outcome: str
    """What was done, or why it was not."""
