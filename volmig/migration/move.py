"""One migration as its steps see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from volmig import errors
from volmig.manager.backend import Backend
from volmig.manager.backends import Backends
from volmig.migration.ownership import OwnedMigration
from volmig.migration.settings import Settings
from volmig.model import EntryKind, JournalEntry, Method, Migration, Phase, RequestContext, Volume, VolumeStatus
from volmig.store import Store
from volmig.store.base import WriteTransaction
from volmig.transfer import CopiedData, End, VerifiedData

PLACE = ("name_id", "provider_location", "provider_id")
"""What of a volume's record says where its driver finds it, beside the pool."""

KEPT = "kept_storage"
"""Subject of the note that says where the old storage is to which a rollback brings the volume back."""


@dataclass(kw_only=True)
class Ends:
    """What the connected volumes are read from and written to, and how to let go of them."""

    source: End | None = None
    backing: End | None = None
    """Where this host has what the source is an export of."""
    destination: End | None = None
    releases: list[Callable[[], None]] = field(default_factory=list)


class Move:
    """The state that the steps of one migration share, and their way to the store.

    Everything that must survive the process is in the store; what is here can be found again from there.
    """

    def __init__(self, store: Store, backends: Backends, settings: Settings, owned: OwnedMigration) -> None:
        self.store = store
        self.backends = backends
        self.settings = settings
        self.owned = owned
        self.ends = Ends()
        self.copied: CopiedData | None = None
        """What the verification has to know of a copy that this process made."""
        self.verified: VerifiedData | None = None
        """What a verification by this process has seen."""
        self.source_update: Mapping[str, Any] = {}
        """Changes to the volume's record that moving it back to its source asks for."""
        self.goes_on = False
        """Whether the copy goes on in the object that an earlier owner has begun to fill."""
        self.must_be_sole_writer = False
        """Whether an earlier owner, that is gone, may still have requests to that object under way in the kernel."""
        self.left_running: set[str] = set()
        """Steps of which a driver's call did not end in time, and may take effect yet."""
        with store.reading() as view:
            migration = view.get_migration(owned.migration.id)
            self._volume = view.get_volume(migration.volume_id)
            self._journal: list[JournalEntry] = list(view.read_journal(migration.id))
        self._unwritten: list[JournalEntry] = []
        self._written = 0
        """How many entries this worker has written."""
        self._taken_over_at = len(self._journal)
        self.context = RequestContext(user=migration.requested_by, project_id=self._volume.project_id)

    @property
    def migration(self) -> Migration:
        """The migration as last recorded."""
        return self.owned.migration

    @property
    def volume(self) -> Volume:
        """The volume as last recorded."""
        return self._volume

    @property
    def source(self) -> Backend:
        return self.backends.at(self.migration.source)

    @property
    def destination(self) -> Backend:
        return self.backends.at(self.migration.destination)

    @property
    def original_status(self) -> VolumeStatus:
        """The volume's status before the migration; which is the only one that a migration accepts."""
        return VolumeStatus.AVAILABLE

    @property
    def copy_volume(self) -> Volume:
        """The destination's object, as its driver is told of it while it has an id of its own."""
        if self.migration.method is Method.ROLLBACK:
            return self.arrived_as({key: self.recorded(KEPT, key) for key in PLACE})
        return replace(
            self._volume,
            id=self.migration.destination_id,
            host=self.migration.destination,
            name_id=self.recorded("create_destination", "name_id"),
            provider_location=self.recorded("create_destination", "provider_location"),
            provider_id=self.recorded("create_destination", "provider_id"),
            status=VolumeStatus.CREATING,
            migration_id=self.migration.id,
        )

    @property
    def source_volume(self) -> Volume:
        """The volume at its source, as its driver is told of it before and after the commit point."""
        return replace(
            self._volume,
            host=self.migration.source,
            name_id=self.recorded_source("name_id"),
            provider_location=self.recorded_source("provider_location"),
            provider_id=self.recorded_source("provider_id"),
        )

    def arrived_as(self, place: Mapping[str, Any]) -> Volume:
        """Return the volume as the destination's driver is told of it at *place*: name and provider fields."""
        return replace(
            self.source_volume,
            host=self.migration.destination,
            name_id=place.get("name_id"),
            provider_location=place.get("provider_location"),
            provider_id=place.get("provider_id"),
        )

    @property
    def committed(self) -> bool:
        """Whether the commit point is passed: the record names the destination."""
        return self._volume.host == self.migration.destination

    def doubt(self, reason: str) -> errors.LocationDoubtful:
        """Return the error that says that nobody can tell where the volume is, naming both places."""
        migration = self.migration
        return errors.LocationDoubtful(
            volume=migration.volume_id, source=migration.source, destination=migration.destination, reason=reason
        )

    # --- journal ------------------------------------------------------------------------------

    def has(self, kind: EntryKind, step: str) -> bool:
        """Say whether the journal has such an entry."""
        return any(entry.kind is kind and entry.subject == step for entry in self._journal)

    @property
    def was_filled_before(self) -> bool:
        """Whether an earlier copy was begun to the destination's present object, when another one begins."""
        copies = 0
        for entry in self._journal:
            if entry.kind is not EntryKind.INTENT:
                continue
            if entry.subject == "create_destination" and entry.data.get("id") != self.migration.destination_id:
                copies = 0
            elif entry.subject == "copy":
                copies += 1
        # The last one is that of the copy which is about to be made.
        return copies > 1

    def was_begun_before(self, step: str) -> bool:
        """Say whether an earlier owner has begun a step that is not undone, so that its effect may be there."""
        earlier, own = self._journal[: self._taken_over_at], self._journal[self._taken_over_at :]
        if any(entry.kind is EntryKind.UNDONE and entry.subject == step for entry in own):
            return False
        kinds = [entry.kind for entry in earlier if entry.subject == step]
        begun = [kind for kind in kinds if kind in (EntryKind.INTENT, EntryKind.UNDONE)]
        return bool(begun) and begun[-1] is EntryKind.INTENT

    def is_begun(self, step: str) -> bool:
        """Say whether a step was begun and is not undone."""
        return self._last(step, EntryKind.INTENT, EntryKind.UNDONE) is EntryKind.INTENT

    def is_done(self, step: str) -> bool:
        """Say whether a step took effect and is not undone."""
        return self._last(step, EntryKind.DONE, EntryKind.UNDONE) is EntryKind.DONE

    def _last(self, step: str, *kinds: EntryKind) -> EntryKind | None:
        for entry in reversed(self._journal):
            if entry.subject == step and entry.kind in kinds:
                return entry.kind
        return None

    def recorded(self, step: str, key: str) -> Any:
        """Return a fact from the outcome of a step that is not undone, or from a note; None when there is none."""
        for entry in reversed(self._journal):
            if entry.subject != step:
                continue
            if entry.kind is EntryKind.UNDONE:
                return None
            if entry.kind in (EntryKind.DONE, EntryKind.NOTE) and key in entry.data:
                return entry.data[key]
        return None

    def intended(self, step: str, key: str) -> Any:
        """Return a fact from the last intent of a step, also of one that is undone."""
        for entry in reversed(self._journal):
            if entry.kind is EntryKind.INTENT and entry.subject == step:
                return entry.data.get(key)
        return None

    def first_intended(self, step: str, key: str) -> Any:
        """Return a fact from the first intent of a step for the destination's present object; None without one."""
        is_begun = False
        for entry in self._journal:
            if entry.kind is not EntryKind.INTENT:
                continue
            if is_begun and entry.subject == step:
                return entry.data.get(key)
            if entry.subject == "create_destination" and entry.data.get("id") == self.migration.destination_id:
                is_begun = True
        return None

    def recorded_source(self, key: str) -> Any:
        """Return a field of the volume's record as it was when the migration was accepted."""
        return self.recorded("reserve", key)

    def entries(self) -> Sequence[JournalEntry]:
        """Return the journal, with what will be written next."""
        return tuple(self._journal)

    def note(self, kind: EntryKind, subject: str, data: Mapping[str, Any] | None = None) -> None:
        """Add an entry, to be written with the next transaction."""
        entry = JournalEntry(
            migration_id=self.migration.id,
            kind=kind,
            subject=subject,
            actor=self.migration.owner,
            epoch=self.migration.epoch,
            data=dict(data or {}),
        )
        self._journal.append(entry)
        self._unwritten.append(entry)

    # --- store --------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Begin a transaction that also writes the noted entries, and fails when this worker is no longer the owner.

        :raises volmig.errors.LeaseLost: when another owns the migration by now.
        """
        self.owned.check()
        known, unwritten = len(self._journal), len(self._unwritten)
        try:
            with self.store.writing() as transaction:
                recording = Recording(transaction, self.migration, self._volume)
                yield recording
                recording.write()
                transaction.append_journal(*self._unwritten)
        except BaseException:
            # What was noted inside did not happen.
            del self._journal[known:]
            del self._unwritten[unwritten:]
            raise
        self._written += len(self._unwritten)
        self._unwritten.clear()
        self._volume = recording.volume
        self.owned.record(recording.migration)

    def save_checkpoint(self, data: bytes) -> None:
        """Record how far the copy is. :raises volmig.errors.LeaseLost: when another owns the migration by now."""
        self.owned.check()
        with self.store.writing() as transaction:
            # The turn may have come too late.
            self.owned.check()
            transaction.save_checkpoint(self.migration, data)

    def refresh(self) -> None:
        """Read everything again, after a transaction whose end is not known.

        :raises volmig.errors.LeaseLost: when another owns the migration by now: its epoch must not become ours.
        """
        own = self.migration
        with self.store.reading() as view:
            migration = view.get_migration(own.id)
            if migration.epoch != own.epoch or (migration.owner != own.owner and not migration.phase.is_final):
                loss = errors.LeaseLost(migration=own.id, owner=own.owner, epoch=own.epoch)
                self.owned.lose(loss)
                raise loss
            self._volume = view.get_volume(migration.volume_id)
            written = list(view.read_journal(migration.id))
        # Others enter their requests in the journal, too.
        own_written = sum(entry.epoch == own.epoch and entry.actor == own.owner for entry in written)
        if own_written > self._written:
            # It was committed after all, and with it what waited to be written.
            self._unwritten.clear()
        self._written = own_written
        self._journal = written + self._unwritten
        self.owned.record(migration)

    def enter(self, recording: Recording, phase: Phase, reason: str) -> None:
        """Change the phase, and the volume's migration status with it.

        :param reason: why, for the history.
        """
        recording.enter(phase)
        self.note(EntryKind.PHASE, phase.value, {"reason": reason})


class Recording:
    """A transaction on a migration and its volume. Changes are collected, and written together."""

    def __init__(self, transaction: WriteTransaction, migration: Migration, volume: Volume) -> None:
        self.transaction = transaction
        self.migration = migration
        """The migration as last written, with what others have changed meanwhile."""
        self.volume = volume
        self._migration_changes: dict[str, Any] = {}
        self._volume_changes: dict[str, Any] = {}
        self._owner_is_checked = False

    @property
    def phase(self) -> Phase:
        """The phase that the migration will be in."""
        phase: Phase = self._migration_changes.get("phase", self.migration.phase)
        return phase

    def enter(self, phase: Phase) -> None:
        """Change the phase, and the volume's migration status with it."""
        if "phase" in self._migration_changes:
            # Each change of phase is checked by itself.
            self.write()
        self.update_migration(phase=phase)
        if self.volume.migration_status is not phase.public_status:
            self.update_volume(migration_status=phase.public_status)

    def take_fresh_volume(self) -> Volume:
        """Return the volume as it is now, with what others have changed, and base the changes on that.

        :raises volmig.errors.StoreConflict: when it is not this migration's any more.
        """
        current = self.transaction.get_volume(self.volume.id)
        if current.migration_id != self.migration.id:
            raise errors.StoreConflict(kind="volume", id=current.id)
        self.volume = current
        return current

    def update_migration(self, **changes: Any) -> None:
        """Change the migration's record."""
        self._migration_changes.update(changes)

    def update_volume(self, **changes: Any) -> None:
        """Change the volume's record."""
        self._volume_changes.update(changes)

    def write(self) -> None:
        """Write what was collected; the first time in any case, which shows whether this worker is still the owner.

        :raises volmig.errors.LeaseLost: when it is not.
        """
        if self._migration_changes or not self._owner_is_checked:
            self.migration = self.transaction.update_migration(self.migration, **self._migration_changes)
            self._owner_is_checked = True
            self._migration_changes.clear()
        if self._volume_changes:
            try:
                self.volume = self.transaction.update_volume(self.volume, **self._volume_changes)
            except errors.StoreConflict:
                # Somebody changed what a migration does not care for, such as the metadata.
                self.volume = self.transaction.update_volume(self.take_fresh_volume(), **self._volume_changes)
            self._volume_changes.clear()
