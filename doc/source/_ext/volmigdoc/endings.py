"""What an operator does about each error that a migration can end in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Final

from volmig import errors
from volmigdoc import rst

ADVICE: Final[Mapping[str, str]] = {
    "location-doubtful": (
        "The volume is ``error``, so that nothing touches it. Look at both places that the error names. When the "
        "storage has come to rest, ``volmig migration recover`` looks again, and frees the volume if it is seen in one "
        "place. If both places have an object of its name, find out which is the volume (the journal has the identity "
        "of the one that it had), move the other one away by the storage's own means, and recover again."
    ),
    "volume-missing": (
        "Its storage is not where the record says. volmig deletes nothing in that state. Find out who moved or removed "
        "it, put it back under the name that the error tells, and repeat the migration."
    ),
    "volume-size-mismatch": (
        "Somebody changed the size of the object behind volmig's back, or the destination's driver made another size "
        "than asked for. Give the object its recorded size again, or correct the driver."
    ),
    "volume-not-found": (
        "The volume's record was removed while the migration was unfinished. Nothing was deleted: what the journal "
        "names may be all that is left of the volume."
    ),
    "object-left-behind": (
        "The volume is whole at its source; the half-made copy could not be deleted. Mend the storage that refuses it. "
        "The copy is on record, and each recovery tries again."
    ),
    "object-displaced": "Look at both files that the error names, and move the one in ``.volmig-gone-…`` back.",
    "unsafe-path": "Somebody put a link, or something else than a file, in a volume's place. Put the file back there.",
    "disk-full": "Free space in the destination, or choose another pool, and repeat the migration.",
    "pool-full": "Free space in the pool, enlarge it, or choose another one, and repeat the migration.",
    "object-name-taken": "Look at what has the name. When nothing needs it, rename or remove it, and repeat.",
    "destination-too-small": "Free space in the pool, wait for other migrations, or choose another pool.",
    "destination-read-only": "Make the pool writable, or choose another.",
    "destination-too-short": "The driver made too small an object: see its log, and report it to its authors.",
    "destination-not-writable": "Look at the rights of the process that runs migrations, and at the storage.",
    "destination-occupied": "Somebody else uses the object that was made for the copy. Find out who, and repeat.",
    "transfer-failed": "The error names path and offset of the read or write: check that storage and the kernel's log.",
    "source-too-short": "The volume's storage ends early: it is damaged already. Restore it before it is moved.",
    "source-changed": "Somebody wrote to the volume during the copy. Stop that, and repeat the migration.",
    "verification-failed": (
        "What was read back is not what was written: **do not trust the destination storage**. Check it (memory, "
        "controller, file system) before another migration goes there. The source is untouched."
    ),
    "changes-would-be-lost": (
        "Of a rollback: the volume was written to since. It stays where it is. Move it back by a migration, or repeat "
        "the rollback with ``--discard-changes``."
    ),
    "old-storage-damaged": (
        "Of a rollback: the old storage is not what it was. Look at what holds it. The volume is whole, and stays "
        "where it is."
    ),
    "volume-in-use": "A program has the volume's storage locked. Stop it, or detach the volume, and repeat.",
    "path-unusable": "Look at the rights of the process that runs migrations, and whether the storage is mounted.",
    "driver-failed": "The driver's own error is in the message, and with its cause in the worker's log.",
    "driver-timeout": (
        "Check the storage. If it is only slow, raise ``driver_timeout_seconds``, or the time of that one call in "
        "``driver_call_timeouts``."
    ),
    "backend-down": "Bring the backend back (``volmig backend show`` has the reason), and repeat the migration.",
    "storage-busy": "The storage refused the call for all repetitions. See what occupies it; raise ``driver_retries``.",
    "operation-in-progress": "Another request was at work on the volume. Repeat the migration when it has ended.",
    "resources-exhausted": "Raise the limits of the process, or let fewer migrations run at once.",
    "store-busy": "Find the process that holds the database. It may be one that was stopped (SIGSTOP).",
    "store-unreachable": "Bring the database back. What was recorded is gone on with.",
    "store-conflict": "Somebody changed the same record at the same moment. Repeat the migration.",
    "unsupported-format": "Convert the volume to raw first. If it only looks like an image: see :ref:`image-formats`.",
    "unsupported-operation": "The driver lacks what the migration needs. Choose another pool, or another way.",
    "unsupported-transfer": "Leave the choice of the engine to volmig (``auto``).",
    "program-missing": "Install the package that the hint names on the host that runs migrations.",
    "extra-missing": "Install the extra that the hint names on the host that runs migrations.",
    "host-not-identified": "Install what the host attaches with; the error names the file with its name.",
    "export-failed": (
        "The kernel refused to show the volume to a host, or to stop that: the kernel's log says more. See "
        ":doc:`exports` for what each protocol needs."
    ),
    "attach-failed": (
        "This host could not attach a volume, or let it go. The message has what ``iscsiadm`` or ``nvme`` said. Check "
        "the network, and that ``iscsid`` runs; what is left is taken back by ``volmig migration recover``."
    ),
    "plugin-not-found": "Install the plugin on the host that runs migrations.",
    "plugin-invalid": "Update or repair the distribution that the error names.",
    "backend-setup-failed": "Correct the backend's options, or the storage that they name.",
    "backend-not-found": "The backend was removed while the migration ran. Enable it again, or choose another.",
    "host-not-found": "A host without these backends took the migration. Correct its configuration.",
    "pool-not-found": "The pool was removed from its backend while the migration ran. Put it back, or choose another.",
    "migration-cancelled": "Of ``cancelled``, not ``error``: nothing. The volume is at its source.",
    "driver-contract-broken": "Report it to the authors of the driver.",
    "internal-error": "Report it, with the migration's history and the worker's log.",
}
"""By code: what to do. The tests see to it that each code is here or among those that end no migration."""

NEVER: Final = frozenset(
    {
        # Told to whoever asks; no migration is begun or changed.
        "volume-name-ambiguous",
        "volume-exists",
        "migration-not-found",
        "address-malformed",
        "size-invalid",
        "request-invalid",
        "same-pool",
        "already-migrating",
        "volume-migrating",
        "volume-has-snapshots",
        "backend-in-use",
        "wrong-status",
        "size-too-small",
        "not-manageable",
        "already-managed",
        "cancel-too-late",
        "pause-impossible",
        "migration-ended",
        "rollback-impossible",
        "nothing-retained",
        "engine-closed",
        "migration-failed",
        "worker-failed",
        "old-storage-left",
        # Found when volmig starts.
        "config-file-unreadable",
        "config-option-invalid",
        "config-option-unknown",
        "config-group-unknown",
        "database-too-new",
        "database-unusable",
        # The worker that meets them leaves the migration to another.
        "lease-lost",
        "migration-abandoned",
        "migration-paused",
        # Of `volmig copy`, or found and dealt with in a migration.
        "checkpoint-mismatch",
        "checkpoint-unusable",
        "checkpoint-busy",
        "destination-busy",
        "checkpoint-superseded",
        "transfer-cancelled",
    }
)
"""The codes that are never the end of a migration."""


def ending_lines() -> list[str]:
    """Return the table of all errors that a migration can end in, those that ask for most care first."""
    rows = []
    for cls in errors.catalogue():
        if cls.code in ADVICE:
            happened = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
            rows.append((f":ref:`{cls.code} <error-{cls.code}>`", happened, ADVICE[cls.code]))
    rows.sort(key=lambda row: list(ADVICE).index(row[0].split("`")[1].split(" ")[0]))
    return rst.table(("Code", "What happened", "What to do"), rows, widths=(22, 33, 45))
