"""Many threads that ask for everything at once, and what must be so afterwards."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from volmig import Engine, errors
from volmig.model import Phase, Volume, VolumeStatus
from volmig.store import MigrationQuery
from volmig.testing import patterns

UNIT = 4096
REFUSALS = (errors.RequestError, errors.TemporaryError, errors.MigrationCancelled)
"""What may answer a request that is sound and comes at the wrong moment; anything else is a defect."""
UNFINISHED = tuple(phase for phase in Phase if not phase.is_final)


@dataclass(kw_only=True)
class Ledger:
    """What was granted, and what was not."""

    granted: list[tuple[str, str, Any]] = field(default_factory=list)
    """As (kind, volume, what)."""
    refused: list[tuple[str, str, Any]] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    unanswered: list[tuple[str, str, Any]] = field(default_factory=list)
    """What a process asked for that was killed before it heard the answer; what is None where only that would tell."""

    def of(self, kind: str, volume_id: str) -> list[Any]:
        return [what for each, volume, what in self.granted if (each, volume) == (kind, volume_id)]

    def perhaps(self, kind: str, volume_id: str) -> list[Any]:
        return [what for each, volume, what in self.unanswered if (each, volume) == (kind, volume_id)]

    def add(self, other: Ledger) -> None:
        self.granted.extend(other.granted)
        self.refused.extend(other.refused)
        self.defects.extend(other.defects)
        self.unanswered.extend(other.unanswered)

    @classmethod
    def read(cls, text: str) -> Ledger:
        """Return what a racer has told, who may have been killed in the middle of a line."""
        ledger = cls()
        asked: tuple[str, str, Any] | None = None
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            answer, kind, volume_id, what = json.loads(line)
            if answer == "asked":
                asked = (kind, volume_id, what)
                continue
            asked = None
            if answer == "defect":
                ledger.defects.append(what)
            else:
                getattr(ledger, answer).append((kind, volume_id, what))
        if asked is not None:
            ledger.unanswered.append(asked)
        return ledger


class Racer:
    """One thread's requests, chosen at random."""

    def __init__(
        self,
        engine: Engine,
        volumes: Sequence[str],
        hosts: Sequence[str],
        *,
        seed: object,
        deletes: bool = True,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.ledger = Ledger()
        self._tell = tell
        self._engine = engine
        self._volumes = volumes
        self._hosts = hosts
        self._random = random.Random(str(seed))
        self._label = str(seed)
        self._number = 0
        self._kinds: dict[str, tuple[int, Callable[[str], Any]]] = {
            "extend": (4, self._extend),
            "metadata": (6, self._metadata),
            "attach": (4, self._attach),
            "snapshot": (4, self._snapshot),
            "retype": (2, self._retype),
            "migrate": (8, self._migrate),
            "cancel": (3, self._cancel),
            "pause": (3, self._pause),
            "resume": (3, self._resume),
            "delete": (2 if deletes else 0, self._delete),
        }

    def run(self, count: int) -> None:
        names = list(self._kinds)
        weights = [self._kinds[name][0] for name in names]
        for kind in ["migrate", *self._random.choices(names, weights, k=count)]:
            self._number += 1
            volume_id = self._random.choice(self._volumes)
            self._kinds[kind][1](volume_id)

    def _ask(self, kind: str, volume_id: str, what: Any, request: Callable[[], Any]) -> Any:
        wanted = None if callable(what) else what
        self._note("asked", kind, volume_id, wanted)
        try:
            answer = request()
        except REFUSALS:
            self._note("refused", kind, volume_id, wanted)
            self.ledger.refused.append((kind, volume_id, wanted))
            return None
        except Exception as error:  # noqa: BLE001
            defect = f"{kind} of {volume_id}: {type(error).__name__}: {error}"
            self._note("defect", kind, volume_id, defect)
            self.ledger.defects.append(defect)
            return None
        granted = what(answer) if callable(what) else what
        self._note("granted", kind, volume_id, granted)
        self.ledger.granted.append((kind, volume_id, granted))
        return answer

    def _note(self, *line: Any) -> None:
        self._tell(json.dumps(line))

    @property
    def _key(self) -> str:
        return f"{self._label}-{self._number}"

    # --- requests -----------------------------------------------------------------------------

    def _extend(self, volume_id: str) -> None:
        # No two ask for the same size.
        try:
            size = self._engine.show_volume(volume_id).size_bytes
        except errors.VolumeNotFound:
            return
        wanted = (size // UNIT + 1) * UNIT + self._random.randrange(1, UNIT)
        self._ask("extend", volume_id, wanted, lambda: self._engine.extend_volume(volume_id, wanted))

    def _metadata(self, volume_id: str) -> None:
        key = self._key
        self._ask("metadata", volume_id, key, lambda: self._engine.update_volume(volume_id, metadata={key: "x"}))
        if self._random.random() < 0.5:
            self._ask(
                "unmetadata", volume_id, key, lambda: self._engine.update_volume(volume_id, remove_metadata=[key])
            )

    def _attach(self, volume_id: str) -> None:
        key = self._key
        attached = self._ask("attach", volume_id, key, lambda: self._engine.attach_volume(volume_id, instance=key))
        if attached is None or self._random.random() < 0.02:
            return
        (own,) = (each.id for each in attached.attachments if each.instance == key)
        self._ask("detach", volume_id, key, lambda: self._engine.detach_volume(volume_id, attachment_id=own))

    def _snapshot(self, volume_id: str) -> None:
        made = self._ask(
            "snapshot", volume_id, lambda answer: answer.id, lambda: self._engine.create_snapshot(volume_id)
        )
        while made is not None:
            # Others may be at work on the volume.
            self._ask("unsnapshot", volume_id, made.id, lambda: self._engine.delete_snapshot(volume_id, made.id))
            if made.id in self.ledger.of("unsnapshot", volume_id) or self._random.random() < 0.01:
                return

    def _retype(self, volume_id: str) -> None:
        wanted = self._random.choice(["fast", "slow", "unknown"])
        self._ask("retype", volume_id, wanted, lambda: self._engine.retype_volume(volume_id, wanted))

    def _migrate(self, volume_id: str) -> None:
        options = {"lock_volume": self._random.random() < 0.3, "force_host_copy": self._random.random() < 0.5}
        try:
            present = self._engine.show_volume(volume_id).host
        except errors.VolumeNotFound:
            return
        host = next(host for host in self._hosts if host != present) if self._random.random() < 0.9 else present
        handle = self._ask(
            "migrate",
            volume_id,
            lambda answer: answer.id,
            lambda: self._engine.migrate(volume_id, host, **options),
        )
        if handle is not None and self._random.random() < 0.5:
            # It may have been paused.
            with contextlib.suppress(TimeoutError, *REFUSALS):
                handle.wait(0.2)

    def _steer(self, kind: str, volume_id: str, ask: Callable[[str], Any]) -> None:
        try:
            migration_id = self._engine.show_volume(volume_id).migration_id
        except errors.VolumeNotFound:
            return
        if migration_id is not None:
            self._ask(kind, volume_id, migration_id, lambda: ask(migration_id))

    def _cancel(self, volume_id: str) -> None:
        self._steer("cancel", volume_id, self._engine.cancel_migration)

    def _pause(self, volume_id: str) -> None:
        self._steer("pause", volume_id, self._engine.pause_migration)

    def _resume(self, volume_id: str) -> None:
        self._steer("resume", volume_id, self._engine.resume_migration)

    def _delete(self, volume_id: str) -> None:
        self._ask("delete", volume_id, True, lambda: self._engine.delete_volume(volume_id))


def race(racers: Sequence[Racer], count: int) -> Ledger:
    """Let all racers run at once, and return what they were told."""
    together = threading.Barrier(len(racers))

    def run(racer: Racer) -> None:
        together.wait()
        racer.run(count)

    threads = [threading.Thread(target=run, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger()
    for racer in racers:
        ledger.add(racer.ledger)
    return ledger


def bring_to_rest(engine: Engine, seconds: float = 60.0) -> None:
    """Let every migration come to its end; what was asked before may pause one of them yet."""
    deadline = time.monotonic() + seconds
    while unfinished := engine.list_migrations(MigrationQuery(phases=UNFINISHED)):
        assert time.monotonic() < deadline, unfinished
        # Their workers may be among those that were killed.
        engine.recover()
        for migration in unfinished:
            with contextlib.suppress(TimeoutError, *REFUSALS):
                if migration.phase is Phase.PAUSED:
                    engine.resume_migration(migration.id)
                engine.migration(migration.id).wait(1.0)
    engine.recover()


def check_record(engine: Engine, before: Volume, ledger: Ledger) -> Volume | None:
    """Compare the record of a volume with what was granted; return it, or None when it was deleted."""
    deleted, perhaps_deleted = (bool(each("delete", before.id)) for each in (ledger.of, ledger.perhaps))
    try:
        now = engine.show_volume(before.id)
    except errors.VolumeNotFound:
        assert deleted or perhaps_deleted
        return None
    assert not deleted
    assert now.operation == {}
    assert now.migration_id is None
    sizes = [before.size_bytes, *ledger.of("extend", before.id)]
    assert now.size_bytes in (max(sizes), *(each for each in ledger.perhaps("extend", before.id) if each > max(sizes)))
    _check_set(ledger, before.id, ("metadata", "unmetadata"), set(now.metadata) - set(before.metadata))
    _check_set(ledger, before.id, ("attach", "detach"), {each.instance for each in now.attachments})
    _check_set(ledger, before.id, ("snapshot", "unsnapshot"), {each.id for each in now.snapshots})
    types = [*ledger.of("retype", before.id), *ledger.perhaps("retype", before.id)]
    assert now.volume_type in (types if ledger.of("retype", before.id) else [before.volume_type, *types])
    if now.status is VolumeStatus.ERROR:
        assert ledger.perhaps("retype", before.id)
        assert "was interrupted" in now.status_reason
    else:
        assert now.status is (VolumeStatus.IN_USE if now.attachments else VolumeStatus.AVAILABLE)
    _check_history(engine, before, now, ledger)
    return now


def _check_set(ledger: Ledger, volume_id: str, kinds: tuple[str, str], present: set[str]) -> None:
    """Check what can be added and removed: all that was added and not removed is there, and nothing else."""
    added, removed = (set(ledger.of(kind, volume_id)) for kind in kinds)
    asked, asked_away = (ledger.perhaps(kind, volume_id) for kind in kinds)
    assert added - removed - set(asked_away) <= present
    extra = present - (added - removed)
    # The answer would have told what some of them are called.
    assert len(extra - set(asked)) <= asked.count(None)
    assert not extra & removed


def _check_history(engine: Engine, before: Volume, now: Volume, ledger: Ledger) -> None:
    history = engine.list_migrations(MigrationQuery(volume_id=before.id))
    unknown = {each.id for each in history} ^ set(ledger.of("migrate", before.id))
    assert len(unknown) <= len(ledger.perhaps("migrate", before.id))
    failed = [each for each in history if each.phase not in (Phase.SUCCESS, Phase.CANCELLED)]
    assert failed == []
    arrived = [each for each in history if each.phase is Phase.SUCCESS]
    last = max(arrived, key=lambda each: each.finished_at, default=None)
    assert now.host == (last.destination if last else before.host)


def grown(pattern: patterns.Pattern, volume: Volume) -> patterns.Pattern:
    """Return what a volume holds that was extended: zeroes behind its data."""
    return replace(pattern, size_bytes=volume.size_bytes)
