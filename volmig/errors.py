"""Every error that volmig raises, arranged by what the caller can do about it.

* :class:`RequestError`: the request asks for something that cannot be; change the request.
* :class:`ConfigurationError`: a setting, a plugin or an installed program is wrong; change that.
* :class:`TemporaryError`: nothing is wrong with the request; try again later.
* :class:`OperatorError`: storage is not as recorded, or failed; someone has to look at it.
* :class:`BugError`: volmig or a driver broke its own contract; report it.
* :class:`CancelledError`: somebody asked for the work to stop, and it did.

An error has a stable ``code`` for programs, a ``message`` that says what happened and where, a
``hint`` that says what to do, and its facts as ``fields``.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any, ClassVar


class VolmigError(Exception):
    """Base of all errors raised by volmig.

    :cvar code: stable identifier; programs may compare it, and it never changes its meaning.
    :cvar template: the message, formatted with the keyword arguments.
    :cvar hint_template: what to do next, formatted likewise.
    """

    code: ClassVar[str] = "error"
    template: ClassVar[str] = "{reason}"
    hint_template: ClassVar[str] = ""

    def __init__(self, *, hint: str | None = None, **fields: Any) -> None:
        self.fields: dict[str, Any] = fields
        self.message: str = self.template.format(**fields)
        self.hint: str = self.hint_template.format(**fields) if hint is None else hint
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.hint, self.fields)

    @classmethod
    def field_names(cls) -> frozenset[str]:
        """Return the names of the keyword arguments that this error must be given."""
        parsed = string.Formatter().parse(cls.template + cls.hint_template)
        return frozenset(name for _, name, _, _ in parsed if name)

    def as_dict(self) -> dict[str, Any]:
        """Return code, message and hint as plain values, for a journal or a reply."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def _rebuild(cls: type[VolmigError], hint: str, fields: dict[str, Any]) -> VolmigError:
    return cls(hint=hint, **fields)


def catalogue() -> Iterator[type[VolmigError]]:
    """Yield every concrete error class, for the documentation and for tests."""
    pending: list[type[VolmigError]] = [VolmigError]
    while pending:
        cls = pending.pop(0)
        if "code" in vars(cls) and cls is not VolmigError:
            yield cls
        pending.extend(sorted(cls.__subclasses__(), key=lambda sub: sub.__name__))


# --- change the request -----------------------------------------------------------------------


class RequestError(VolmigError):
    """The request cannot be carried out as it stands; nothing was changed."""


class VolumeNotFound(RequestError):
    """No volume has this id or name."""

    code = "volume-not-found"
    template = "There is no volume {volume!r}."
    hint_template = "`volmig volume list` shows the volumes of this store."


class VolumeNameAmbiguous(RequestError):
    """Several volumes have this name."""

    code = "volume-name-ambiguous"
    template = "The name {volume!r} belongs to {count} volumes: {ids}."
    hint_template = "Name the volume by its id."


class VolumeExists(RequestError):
    """A volume with this id is already recorded."""

    code = "volume-exists"
    template = "A volume with the id {volume} is already recorded."
    hint_template = "Choose another id, or show the present one with `volmig volume show {volume}`."


class MigrationNotFound(RequestError):
    """No migration has this id."""

    code = "migration-not-found"
    template = "There is no migration {migration!r}."
    hint_template = "`volmig migration list` shows the migrations of this store."


class AddressMalformed(RequestError):
    """A pool address is not of the form ``host@backend#pool``."""

    code = "address-malformed"
    template = "{address!r} is not a pool address: {reason}."
    hint_template = (
        "Write host@backend#pool; a backend without pools has one pool with the backend's name. "
        "`volmig pool list` shows the addresses."
    )


class HostNotFound(RequestError):
    """No known host has this name."""

    code = "host-not-found"
    template = "There is no host {host!r} (in the address {address}); known hosts: {known}."
    hint_template = "`volmig pool list` shows the addresses that can be used."


class BackendNotFound(RequestError):
    """No enabled backend has this name."""

    code = "backend-not-found"
    template = "There is no backend {backend!r} on host {host!r}; enabled backends: {known}."
    hint_template = "Check enabled_backends in the configuration, or choose one of the backends named."


class PoolNotFound(RequestError):
    """The backend has no pool of this name."""

    code = "pool-not-found"
    template = "The backend {backend!r} has no pool {pool!r}; its pools: {known}."
    hint_template = "`volmig pool list` shows the addresses that can be used."


class SizeInvalid(RequestError):
    """A size is not a positive whole number of bytes."""

    code = "size-invalid"
    template = "{value!r} is not a usable size: {reason}."
    hint_template = "Give a positive whole number of bytes, or of the unit you add: B, KiB, MiB, GiB or TiB."


class RequestInvalid(RequestError):
    """A value in the request is not acceptable."""

    code = "request-invalid"
    template = "{what} is not acceptable: {reason}."
    hint_template = "Correct {what} and repeat the request."


class SamePool(RequestError):
    """The volume is already in the pool that it was asked to move to."""

    code = "same-pool"
    template = "Volume {volume} is already in {pool}."
    hint_template = "Choose another pool: `volmig pool list`."


class AlreadyMigrating(RequestError):
    """The volume is being migrated."""

    code = "already-migrating"
    template = "Volume {volume} is already being migrated (migration {migration})."
    hint_template = (
        "Wait for it (`volmig migration watch {migration}`) or cancel it (`volmig migration cancel {migration}`)."
    )


class VolumeMigrating(RequestError):
    """The volume is being migrated, and the migration cannot give way to this request."""

    code = "volume-migrating"
    template = "Cannot {operation} volume {volume} while migration {migration} moves it: {reason}."
    hint_template = "Wait for it: `volmig migration watch {migration}`."


class VolumeInUse(RequestError):
    """The volume is attached, or another process holds it open."""

    code = "volume-in-use"
    template = "Volume {volume} is in use ({users})."
    hint_template = "Detach it or stop what uses it, then repeat the request."


class BackendInUse(RequestError):
    """The backend's storage cannot be taken down while something is in it or uses it."""

    code = "backend-in-use"
    template = "The storage of backend {backend} is in use: {users}."
    hint_template = "Move or delete what is in it and stop what uses it, then repeat the request."


class VolumeHasSnapshots(RequestError):
    """The volume has snapshots, which would be lost."""

    code = "volume-has-snapshots"
    template = "Cannot {operation} volume {volume}: it has {count} snapshot(s)."
    hint_template = "Delete the snapshots first; they cannot follow the volume."


class WrongStatus(RequestError):
    """The volume's status does not allow the operation."""

    code = "wrong-status"
    template = "Cannot {operation} volume {volume} in status {status!r}; it must be {allowed}."
    hint_template = "`volmig volume show {volume}` shows its state and the reason for it."


class SizeTooSmall(RequestError):
    """A volume can only be extended, never shrunk."""

    code = "size-too-small"
    template = "Volume {volume} has {present} bytes and cannot be extended to {wanted}."
    hint_template = "Give a size that is larger than the present one."


class DestinationTooSmall(RequestError):
    """The pool has no room for the volume."""

    code = "destination-too-small"
    template = "{pool} has room for {free} bytes more, and {needed} are needed."
    hint_template = "Choose another pool, free space there, or wait for other migrations to end."


class DestinationReadOnly(RequestError):
    """The pool accepts no new volumes."""

    code = "destination-read-only"
    template = "{pool} cannot be written to: {reason}."
    hint_template = "Choose another pool, or make this one writable."


class DestinationOccupied(RequestError):
    """Overwriting the destination would destroy something, or disturb who uses it."""

    code = "destination-occupied"
    template = "{path} is not overwritten: {reason}."
    hint_template = "Look at it with `{shown_by}`. If it may be destroyed, repeat the command with --force."


class DestinationNotWritable(RequestError):
    """The destination of a copy cannot be written to, or not be created."""

    code = "destination-not-writable"
    template = "{path} cannot be written to: {reason}."
    hint_template = "Name another destination, or make this one writable."


class PathUnusable(RequestError):
    """A path that was named leads to nothing, or may not be used."""

    code = "path-unusable"
    template = "{path} cannot be used: {reason}."
    hint_template = "Check the spelling, and the rights on it and on its directory."


class CheckpointMismatch(RequestError):
    """A checkpoint was made for another copy, or for ends that are no longer what they were."""

    code = "checkpoint-mismatch"
    template = "The checkpoint {path} does not belong to this copy: {reason}."
    hint_template = "Name the copy that it belongs to, or begin afresh without it."


class CheckpointUnusable(RequestError):
    """A checkpoint cannot be read: it is damaged, of a newer volmig, or something else."""

    code = "checkpoint-unusable"
    template = "{path} cannot be used as a checkpoint: {reason}."
    hint_template = "Name another file, or remove this one and begin the copy afresh."


class UnsupportedOperation(RequestError):
    """The driver does not offer the operation."""

    code = "unsupported-operation"
    template = "The driver of backend {backend!r} does not offer {operation}."
    hint_template = "`volmig backend show {backend}` lists what it offers."


class UnsupportedFormat(RequestError):
    """No engine can carry this data format to where it should go."""

    code = "unsupported-format"
    template = "{what} has the format {format!r}, which cannot be used here: {reason}."
    hint_template = "Convert it to raw first, or choose an engine that translates the format."


class UnsupportedTransfer(RequestError):
    """The chosen transfer engine cannot serve these ends."""

    code = "unsupported-transfer"
    template = "The transfer engine {engine!r} cannot do this copy: {reason}."
    hint_template = "Leave the choice to volmig (engine auto), or choose another engine."


class NotManageable(RequestError):
    """An existing object cannot be taken into management."""

    code = "not-manageable"
    template = "{reference} cannot be taken into management: {reason}."
    hint_template = "Name an existing image inside the directory or pool of an enabled backend."


class AlreadyManaged(RequestError):
    """The object belongs to a volume already."""

    code = "already-managed"
    template = "{reference} is already the storage of volume {volume}."
    hint_template = "`volmig volume show {volume}` shows it."


class CancelTooLate(RequestError):
    """The migration is past the point where it can be cancelled."""

    code = "cancel-too-late"
    template = "Migration {migration} can no longer be cancelled: it is in phase {phase!r}."
    hint_template = "`volmig migration show {migration}` shows how it ended, or wait for its end."


class PauseImpossible(RequestError):
    """The migration cannot be paused."""

    code = "pause-impossible"
    template = "Migration {migration} cannot be paused: {reason}."
    hint_template = "`volmig migration show {migration}` shows where it stands."


class MigrationEnded(RequestError):
    """The request is for a migration that goes on, and this one has ended."""

    code = "migration-ended"
    template = "Migration {migration} has ended: it is in phase {phase!r}."
    hint_template = "`volmig migration show {migration}` shows how it ended."


class RollbackImpossible(RequestError):
    """The volume cannot go back to where it was before the migration."""

    code = "rollback-impossible"
    template = "Migration {migration} cannot be rolled back: {reason}."
    hint_template = "Move the volume to where it is to be by `volmig volume migrate`."


class ChangesWouldBeLost(RequestError):
    """The volume was written to after its migration, and its old storage does not have that."""

    code = "changes-would-be-lost"
    template = (
        "Migration {migration} is not rolled back: volume {volume} in {host} differs from its old storage, from byte "
        "{offset} on, so that what was written since would be lost."
    )
    hint_template = "Keep it, move it back by `volmig volume migrate`, or repeat the rollback with --discard-changes."


class NothingRetained(RequestError):
    """No old storage of the migration is kept."""

    code = "nothing-retained"
    template = "No old storage of migration {migration} is kept."
    hint_template = "`volmig migration show {migration} --history` shows what became of it."


# --- change the configuration -----------------------------------------------------------------


class ConfigurationError(VolmigError):
    """volmig cannot work with what it was configured with."""


class ConfigFileUnreadable(ConfigurationError):
    """A configuration file cannot be read or parsed."""

    code = "config-file-unreadable"
    template = "The configuration file {path} cannot be used: {reason}."
    hint_template = "Correct the file, or name another with --config-file."


class ConfigOptionInvalid(ConfigurationError):
    """An option's value is missing, malformed or contradicts another."""

    code = "config-option-invalid"
    template = "Option {option} in [{group}] ({source}) is not usable: {reason}."
    hint_template = "Correct the option; doc/ describes each one, and so does the sample file."


class ConfigOptionUnknown(ConfigurationError):
    """A group of the configuration has an option that nobody reads."""

    code = "config-option-unknown"
    template = "Option {option} in [{group}] ({source}) is unknown to {reader}."
    hint_template = "Did you mean one of: {known}?"


class ConfigGroupUnknown(ConfigurationError):
    """A configuration file has a group that is neither one of volmig's own nor a backend's."""

    code = "config-group-unknown"
    template = "The group [{group}] ({source}) is none of volmig's, and no backend: {reason}."
    hint_template = "Did you mean one of: {known}?"


class PluginNotFound(ConfigurationError):
    """No installed distribution offers the plugin."""

    code = "plugin-not-found"
    template = "There is no plugin {plugin!r} in {namespace}; installed ones: {known}."
    hint_template = "Check the spelling, or install the distribution that offers it."


class PluginInvalid(ConfigurationError):
    """A plugin does not fulfil its contract; found while loading it."""

    code = "plugin-invalid"
    template = "The plugin {plugin!r} in {namespace} (of {distribution}) is not usable: {reason}."
    hint_template = "Update or repair {distribution}; the driver guide states the contract."


class BackendSetupFailed(ConfigurationError):
    """A driver found that its backend cannot work as configured."""

    code = "backend-setup-failed"
    template = "Backend {backend!r} cannot be used: {reason}."
    hint_template = "Correct the options in [{backend}], or the storage that they name."


class DatabaseTooNew(ConfigurationError):
    """The database was written by a newer volmig."""

    code = "database-too-new"
    template = "The database {database} has the schema {found!r}, which this volmig does not know."
    hint_template = "Use the volmig that wrote it, or a newer one; this one knows schemas up to {supported}."


class DatabaseUnusable(ConfigurationError):
    """The database cannot be opened or is not one of volmig's."""

    code = "database-unusable"
    template = "The database {database} cannot be used: {reason}."
    hint_template = "Check [database] connection, and the rights on its directory."


class ProgramMissing(ConfigurationError):
    """A program that was asked for is not installed."""

    code = "program-missing"
    template = "The program {program!r} is not installed."
    hint_template = "Install it (Debian package {package}), or choose another engine."


class ExtraMissing(ConfigurationError):
    """A Python package is not installed that only some installations need."""

    code = "extra-missing"
    template = "The Python package {package} is not installed, which {purpose} needs."
    hint_template = "Install it: pip install 'volmig[{extra}]'."


class HostNotIdentified(ConfigurationError):
    """The host that is to attach a volume has no name in the protocol."""

    code = "host-not-identified"
    template = "Host {host!r} has no {what}, so that nothing can be shown to it over {protocol}."
    hint_template = "Install what it attaches with; its name is then in {file} on that host."


# --- try again later --------------------------------------------------------------------------


class TemporaryError(VolmigError):
    """The request is sound, but cannot be served now."""


class BackendDown(TemporaryError):
    """A backend does not answer, or says that it is out of service."""

    code = "backend-down"
    template = "Backend {backend!r} is out of service: {reason}."
    hint_template = "Try again when it is back; `volmig backend list` shows its state."


class DriverTimeout(TemporaryError):
    """A driver call did not end in its time."""

    code = "driver-timeout"
    template = "Backend {backend!r} did not answer {method} within {seconds} seconds."
    hint_template = "Check the storage; if it is only slow, raise driver_timeout_seconds for the backend."


class StorageBusy(TemporaryError):
    """The storage refuses a call for the moment.

    A driver raises it before anything was changed, and the call is repeated.
    """

    code = "storage-busy"
    template = "Backend {backend!r} is busy: {reason}."
    hint_template = "Try again; if it lasts, look at what the storage is occupied with."


class OperationInProgress(TemporaryError):
    """Another request is at work on the volume."""

    code = "operation-in-progress"
    template = "Volume {volume} is busy: {operation} is under way in {worker}."
    hint_template = (
        "Repeat the request when that has ended; if that process is gone, `volmig migration recover` ends it."
    )


class StoreConflict(TemporaryError):
    """Somebody else changed the record between reading and writing it."""

    code = "store-conflict"
    template = "The record of {kind} {id} was changed by somebody else meanwhile."
    hint_template = "Read it again and repeat the request."


class StoreBusy(TemporaryError):
    """The database could not be written in time."""

    code = "store-busy"
    template = "The database {database} stayed locked for {seconds} seconds."
    hint_template = "Try again; if it lasts, find the process that holds it."


class StoreUnreachable(TemporaryError):
    """The connection to the database's server broke, or cannot be made any more."""

    code = "store-unreachable"
    template = "The database {database} cannot be reached: {reason}."
    hint_template = "Try again when its server is back; a change that was under way may have been recorded."


class ResourcesExhausted(TemporaryError):
    """The system gives this process no more memory or threads."""

    code = "resources-exhausted"
    template = "There is no {what}: {reason}."
    hint_template = "Raise the limits of the process (`ulimit -a`, its control group), or let fewer copies run at once."


class LeaseLost(TemporaryError):
    """A worker does not own the migration, so that it must not touch it: another does, or it has ended."""

    code = "lease-lost"
    template = (
        "Migration {migration} is not in the hands of {owner} (epoch {epoch}): another worker has it, or it ended."
    )
    hint_template = "Nothing to do: whoever has it goes on with it. `volmig migration show {migration}` shows who."


class MigrationAbandoned(LeaseLost):
    """No worker runs the migration: the one that did is gone, or could not renew its lease and gave it up."""

    code = "migration-abandoned"
    template = "No worker runs migration {migration}: {reason}."
    hint_template = "`volmig migration recover` takes it over, and goes on with it or undoes it."


class MigrationPaused(LeaseLost):
    """No worker runs the migration, since somebody has paused it."""

    code = "migration-paused"
    template = "Migration {migration} is paused, as {requested_by} asked."
    hint_template = "`volmig migration resume {migration}` lets it go on."


class CheckpointBusy(TemporaryError):
    """Another run of the same copy is at work."""

    code = "checkpoint-busy"
    template = "Another process is at work on the copy of the checkpoint {path}."
    hint_template = "Wait for it to end, or stop it; `fuser --verbose {path}` shows it."


class DestinationBusy(TemporaryError):
    """Requests of an earlier copy to the destination may still be under way."""

    code = "destination-busy"
    template = "An earlier copy to {path} may still have requests under way, which the storage has not answered."
    hint_template = "Go on when the storage answers again, or copy to another place; `fuser --verbose {path}` may help."


class CheckpointSuperseded(TemporaryError):
    """Another run has taken a copy over, or ended it, while this one did not watch."""

    code = "checkpoint-superseded"
    template = "The copy of the checkpoint {path} is no longer in the hands of this process: {reason}."
    hint_template = "Nothing to do when the other run goes on; else repeat the command, with the same checkpoint."


class EngineClosed(TemporaryError):
    """The engine is being closed and takes no new work."""

    code = "engine-closed"
    template = "This engine is closed and takes no new work."
    hint_template = "Open a new Engine."


# --- call an operator -------------------------------------------------------------------------


class OperatorError(VolmigError):
    """Storage failed, or is not as recorded; somebody has to look at it."""


class VolumeObjectMissing(OperatorError):
    """The volume's storage is not where the record says."""

    code = "volume-missing"
    template = "The storage of volume {volume} is missing: there is no {location}."
    hint_template = "Find out who removed it; restore it there, then repeat the request."


class VolumeSizeMismatch(OperatorError):
    """The volume's storage has another size than recorded."""

    code = "volume-size-mismatch"
    template = "Volume {volume} should have {recorded} bytes, but {location} has {actual}."
    hint_template = "Find out who changed its size; nothing is copied until both agree."


class UnsafePath(OperatorError):
    """The volume's file is a symbolic link, not a regular file, or outside its directory."""

    code = "unsafe-path"
    template = "{path} is not used as a volume: {reason}."
    hint_template = "Put a regular file in the backend's own directory in its place."


class DiskFull(OperatorError):
    """There was no space left while writing."""

    code = "disk-full"
    template = "No space is left for {path} (at byte {offset})."
    hint_template = "Free space there or choose another pool, then repeat the request."


class PoolFull(DiskFull):
    """A pool has no room for what was to be made in it; nothing was changed."""

    code = "pool-full"
    template = "{pool} has no room for {what}: {needed} bytes are needed, and {free} are left."
    hint_template = "Free space in {pool}, enlarge it, or choose another pool, then repeat the request."


class ObjectNameTaken(OperatorError):
    """Something else has the name that an object should get; nothing was changed."""

    code = "object-name-taken"
    template = "The name {location} is taken in backend {backend!r} by {holder}."
    hint_template = "Look at it; when nothing needs it, rename or remove it there, then repeat the request."


class TransferFailed(OperatorError):
    """Reading or writing failed in the middle of a copy."""

    code = "transfer-failed"
    template = "Copying failed at byte {offset} of {path}: {reason}."
    hint_template = "Check that storage and its logs; the source is unchanged."


class SourceTooShort(OperatorError):
    """The source ended before the volume's size."""

    code = "source-too-short"
    template = "The source {path} ends at byte {actual}, before its {expected} bytes are read."
    hint_template = "The volume's storage is incomplete; compare its size with the record."


class DestinationTooShort(OperatorError):
    """The destination object has less room than the volume's size; nothing was written."""

    code = "destination-too-short"
    template = "The destination {path} has {actual} bytes, and {expected} are to be copied."
    hint_template = "Make it larger. If a driver made it for this copy, see its log."


class SourceChanged(OperatorError):
    """The source was written to while it was copied."""

    code = "source-changed"
    template = "The source {path} was changed by somebody while it was copied ({reason})."
    hint_template = "Stop what writes to it, or attach it, so that it is known to be in use."


class VerificationFailed(OperatorError):
    """What was read back from the destination is not what was read from the source."""

    code = "verification-failed"
    template = "{path} does not hold what was copied: first difference at or after byte {offset}."
    hint_template = "The destination storage is not trustworthy; check it before trying again."


class DriverFailed(OperatorError):
    """A driver call raised an error of its own."""

    code = "driver-failed"
    template = "Backend {backend!r} failed in {method}: {reason}."
    hint_template = "See the log for the driver's own error, and the storage for its cause."


class MigrationFailed(OperatorError):
    """A migration ended in ``error``; told from its record, by a process that did not run it."""

    code = "migration-failed"
    template = "Migration {migration} failed ({error_code}): {reason}"
    hint_template = "`volmig migration show {migration}` shows its history."


class WorkerFailed(OperatorError):
    """The background process of a migration ended before it had begun."""

    code = "worker-failed"
    template = "The worker of migration {migration} could not begin: {reason}."
    hint_template = "Its log is {log}. Nothing was moved; the migration was cancelled."


class ExportFailed(OperatorError):
    """A volume could not be shown to a host, or that could not be taken back."""

    code = "export-failed"
    template = "The export of volume {volume} of backend {backend!r} over {protocol} failed: {reason}."
    hint_template = "Look at the kernel's log and at what is exported; the request can be repeated."


class AttachFailed(OperatorError):
    """A volume that is shown to this host could not be attached, or not be let go."""

    code = "attach-failed"
    template = "{target} over {protocol}: {action} failed: {reason}."
    hint_template = "Check the network to its host, and the log of both; the request can be repeated."


class ObjectLeftBehind(OperatorError):
    """Something that should have been deleted could not be; it is on record, and will be tried again."""

    code = "object-left-behind"
    template = "The volume is whole at its source, but {what} could not be taken back: {reason}"
    hint_template = "It is on record, and deleting it is tried again; mend the storage that refuses it."


class OldStorageDamaged(OperatorError):
    """The old storage to which a volume was to go back does not hold any more what was copied from it."""

    code = "old-storage-damaged"
    template = (
        "Migration {migration} is not rolled back: its old storage {name} in {host} does not hold any more what volume "
        "{volume} was copied from. Nothing has changed; the volume stays in {present}."
    )
    hint_template = (
        "Something has written to the old storage, or the storage has lost data: look at it. The volume does not need "
        "it; `volmig migration retire {migration}` deletes it."
    )


class OldStorageLeft(OperatorError):
    """The old storage of a migrated volume was to be deleted, and is still there."""

    code = "old-storage-left"
    template = "The old storage {name} of volume {volume} in {host} is not deleted yet: {reason}."
    hint_template = "It is on record, and `volmig migration recover` tries again; mend the storage that refuses it."


class ObjectDisplaced(OperatorError):
    """While an object was removed, another one was found in its place, and could not be put back."""

    code = "object-displaced"
    template = "Another file had the name {path} when it was to be removed; it is whole, but now at {kept}."
    hint_template = "Nothing was deleted. Look at both files, and move {kept} to where it belongs."


class LocationDoubtful(OperatorError):
    """It cannot be said for certain where the volume's data is; nothing was deleted."""

    code = "location-doubtful"
    template = "Volume {volume} may be in {source} or in {destination}: {reason}."
    hint_template = (
        "Nothing was deleted; look at both places before you touch either. When no driver's call can be moving it any "
        "more, since the call has ended or its process is gone, `volmig migration recover` looks again, and frees a "
        "volume that is seen in one place."
    )


# --- report a bug -----------------------------------------------------------------------------


class BugError(VolmigError):
    """A part broke its contract."""


class DriverContractBroken(BugError):
    """A driver returned something that the contract does not allow."""

    code = "driver-contract-broken"
    template = "The driver {driver} of backend {backend!r} broke its contract in {method}: {reason}."
    hint_template = "Report it to the driver's authors; volmig.testing.conformance shows it."


class InternalError(BugError):
    """volmig met a state that it rules out."""

    code = "internal-error"
    template = "volmig met a state that should not be possible: {reason}."
    hint_template = "Please report it with the output of the same command under --debug."


# --- somebody asked for it --------------------------------------------------------------------


class CancelledError(VolmigError):
    """The work was stopped on request."""


class TransferCancelled(CancelledError):
    """A copy was stopped on request."""

    code = "transfer-cancelled"
    template = "The copy was cancelled after {bytes_done} of {bytes_total} bytes."
    hint_template = "The destination is incomplete; the source is unchanged."
    storage_hangs: bool = False
    """Whether requests of it stay under way, since the storage does not answer them."""


class MigrationCancelled(CancelledError):
    """A migration was stopped on request, and its destination is gone."""

    code = "migration-cancelled"
    template = "Migration {migration} was cancelled by {requested_by}."
    hint_template = "The volume is at its source, unchanged; start a new migration when you like."
