"""What the commands that steer a migration ask of the engine, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from volmig import errors
from volmig.cli import background
from volmig.cli.app import main
from volmig.cli.base import BaseCommand
from volmig.model import Method, Migration, Phase, RetiredObject, Volume, VolumeStatus

from .fabricated import Handle, event, migration

LATER = datetime.now(UTC) + timedelta(days=1)
EARLIER = datetime.now(UTC) - timedelta(days=1)
RUNNING = migration(Phase.MIGRATING, owner="h:1", epoch=1, lease_expires_at=LATER)
PAUSED = migration(Phase.PAUSED, epoch=1, pause_requested_by="eve")
PAUSING = migration(Phase.MIGRATING, owner="h:1", epoch=1, lease_expires_at=LATER, pause_requested_by="eve")
QUEUED = migration(Phase.QUEUED, epoch=1)
RETIRED = RetiredObject(
    id="r", migration_id="m", volume_id="v-1", host="h@a#a", name_id="n", size_bytes=1, last_error="it is busy"
)


class Followed(Handle):
    """A handle whose record is that of its last event."""

    volume = Volume(id="v-1", name="web", size_bytes=1, host="h@a#a", status=VolumeStatus.AVAILABLE)

    def status(self) -> Migration:
        found: Migration = self.script[-1].migration
        return found

    def result(self) -> Volume:
        return self.volume


class Engine:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def is_abandoned(self, seen: Migration) -> bool:
        return not seen.phase.is_final and bool(seen.owner) and seen.lease_expires_at == EARLIER

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, *args, *kwargs.values()))
            answer = self.answers[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call

    @property
    def asked(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    monkeypatch.setattr(BaseCommand, "load_configuration", lambda _: SimpleNamespace(state_path="/nonexistent"))

    def install(**answers: Any) -> Engine:
        engine = Engine(**answers)
        monkeypatch.setattr(BaseCommand, "open_engine", lambda *_: engine)
        return engine

    return install


Use = Callable[..., Engine]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("answer", "said", "next_command"),
    [
        (PAUSED, "It is paused.", "resume"),
        (PAUSING, "what it has copied is kept", "resume"),
        (migration(owner="h:1", pause_requested_by="eve", engine="dd"), "the engine dd cannot go on", "resume"),
        (migration(owner="h:1", pause_requested_by="eve", method=Method.ROLLBACK), "compares from", "resume"),
        (migration(owner="h:1", pause_requested_by="eve", lease_expires_at=EARLIER), "No worker runs it", "recover"),
    ],
)
def test_pause_says_what_happens_and_what_comes_next(
    use: Use, capsys: Capture, answer: Migration, said: str, next_command: str
) -> None:
    engine = use(pause_migration=answer)
    assert main(["migration", "pause", "m", "-f", "json"]) == 0
    shown = capsys.readouterr()
    assert engine.calls == [("pause_migration", "m")]
    assert json.loads(shown.out)["pause_requested_by"] == "eve"
    assert said in shown.err
    assert f"volmig migration {next_command}" in shown.err


def test_pause_can_wait_until_it_is_so(use: Use, capsys: Capture) -> None:
    handle = Followed([event(stage="copy", pause_requested_by="eve"), event(Phase.PAUSED, pause_requested_by="eve")])
    use(pause_migration=PAUSING, migration=handle)
    assert main(["migration", "pause", "--wait", "m", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == "paused"


@pytest.mark.parametrize(
    ("last", "reason"),
    [(event(Phase.SUCCESS, pause_requested_by="eve"), "come to phase 'success'"), (event(), "has resumed it")],
)
def test_a_pause_that_does_not_come_is_an_error(use: Use, capsys: Capture, last: Any, reason: str) -> None:
    use(pause_migration=PAUSING, migration=Followed([event(pause_requested_by="eve"), last]))
    assert main(["migration", "pause", "--wait", "m"]) == 2
    told = capsys.readouterr().err
    assert "[pause-impossible]" in told
    assert reason in told


def test_resume_leaves_one_that_has_not_stopped_to_its_worker(use: Use, capsys: Capture) -> None:
    engine = use(request_resume=RUNNING)
    assert main(["migration", "resume", "m"]) == 0
    assert engine.asked == ["request_resume"]
    assert "goes on in its worker" in capsys.readouterr().err


@pytest.mark.parametrize("resumed", [QUEUED, migration(owner="h:1", epoch=1, lease_expires_at=EARLIER)])
def test_resume_here_takes_one_that_has_no_worker(use: Use, capsys: Capture, resumed: Migration) -> None:
    handle = Followed([event(stage="copy"), event(Phase.SUCCESS)])
    engine = use(request_resume=resumed, run_migration=handle)
    assert main(["migration", "resume", "--wait", "m", "-f", "json"]) == 0
    assert engine.asked == ["request_resume", "run_migration"]
    assert json.loads(capsys.readouterr().out)["phase"] == "success"


@pytest.mark.parametrize(
    ("resumed", "asked"),
    [(RUNNING, ["request_resume", "migration"]), (QUEUED, ["request_resume", "run_migration", "migration"])],
)
def test_resume_here_follows_one_that_runs_elsewhere(use: Use, resumed: Migration, asked: list[str]) -> None:
    lost = errors.LeaseLost(migration="m", owner="h:2", epoch=2)
    engine = use(request_resume=resumed, run_migration=lost, migration=Followed([event(Phase.SUCCESS)]))
    assert main(["migration", "resume", "--wait", "m"]) == 0
    assert engine.asked == asked


def test_resume_apart_starts_a_worker(use: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(request_resume=QUEUED)
    taken = migration(Phase.STARTING, epoch=2, owner="h:2")
    monkeypatch.setattr(background, "start_worker", lambda *_: 7)
    monkeypatch.setattr(background, "await_claim", lambda *_: taken)
    assert main(["migration", "resume", "m"]) == 0
    assert engine.asked == ["request_resume"]
    assert "volmig migration watch" in capsys.readouterr().err


def test_a_worker_that_cannot_begin_leaves_it_paused(
    use: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise errors.WorkerFailed(migration="m", reason="no", log="/l")

    monkeypatch.setattr(background, "start_worker", fail)
    engine = use(request_resume=QUEUED, pause_migration=PAUSED)
    assert main(["migration", "resume", "m"]) == 5
    assert engine.asked == ["request_resume", "pause_migration"]
    told = capsys.readouterr().err
    assert "[worker-failed]" in told
    assert "The migration stays paused." in told
    assert "cancelled" not in told


@pytest.mark.parametrize(
    ("rate", "bytes_a_second", "changed", "said"),
    [
        ("50MiB", 50 * 1024**2, RUNNING, "It may move 50.0 MiB/s; its worker follows within moments."),
        ("0", 0, RUNNING, "It is not limited any more; its worker follows"),
        ("1KiB/s", 1024, PAUSED, "It may move 1.00 KiB/s; that holds when it goes on."),
    ],
)
def test_limit(use: Use, capsys: Capture, rate: str, bytes_a_second: int, changed: Migration, said: str) -> None:
    engine = use(limit_migration=changed)
    assert main(["migration", "limit", "m", rate]) == 0
    assert engine.calls == [("limit_migration", "m", bytes_a_second)]
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["50", "1GB", "none"])
def test_a_wrong_limit_changes_nothing(use: Use, rate: str) -> None:
    engine = use()
    assert main(["migration", "limit", "m", rate]) == 2
    assert engine.calls == []


@pytest.mark.parametrize("discard", [False, True])
def test_rollback_here(use: Use, capsys: Capture, discard: bool) -> None:
    handle = Followed([event(stage="verify"), event(Phase.SUCCESS, method=Method.ROLLBACK, rolls_back="m")])
    engine = use(rollback_migration=handle)
    words = ["migration", "rollback", "--wait", "m", "-f", "json", *(["--discard-changes"] if discard else [])]
    assert main(words) == 0
    assert engine.calls == [("rollback_migration", "m", discard)]
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rolls_back"] == "m"
    assert "Volume web is back at h@a#a." in shown.err


def test_rollback_apart_is_cancelled_when_nobody_runs_it(
    use: Use, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise errors.WorkerFailed(migration="m", reason="no", log="/l")

    monkeypatch.setattr(background, "start_worker", fail)
    handle = SimpleNamespace(wait=lambda: None)
    engine = use(request_rollback=migration(Phase.QUEUED), cancel_migration=None, migration=handle)
    assert main(["migration", "rollback", "m"]) == 5
    assert engine.asked == ["request_rollback", "cancel_migration", "migration"]
    assert "the volume is where it was" in capsys.readouterr().err


@pytest.mark.parametrize(("left", "status"), [([], 0), ([RETIRED], 5)])
def test_retire_says_whether_the_old_storage_is_gone(
    use: Use, capsys: Capture, left: list[RetiredObject], status: int
) -> None:
    use(retire_migration=left, show_migration=migration(Phase.SUCCESS))
    assert main(["migration", "retire", "m"]) == status
    told = capsys.readouterr().err
    assert ("old storage is deleted" in told) is not left
    assert ("[old-storage-left]" in told) is bool(left)
    assert ("it is busy" in told) is bool(left)


def kept(until: datetime) -> tuple[Migration, list[RetiredObject]]:
    done = migration(Phase.SUCCESS, source_retention_seconds=3600)
    retired = RetiredObject(
        id="r", migration_id=done.id, volume_id="v", host=done.source, name_id="v", size_bytes=1, delete_after=until
    )
    return done, [retired]


@pytest.mark.parametrize(
    ("at", "said", "command"),
    [(datetime.now(UTC), "is kept until", "rollback"), (EARLIER, "was kept until", "recover")],
)
def test_show_tells_of_the_old_storage_that_is_kept(
    use: Use, capsys: Capture, at: datetime, said: str, command: str
) -> None:
    until = at + timedelta(hours=1)
    done, retired = kept(until)
    use(show_migration=done, history=[], kept_storage=retired)
    assert main(["migration", "show", "m", "-f", "json"]) == 0
    shown = capsys.readouterr()
    told = until.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert json.loads(shown.out)["source_kept_until"] == told
    assert f"Its old storage in h@a#a {said} {told}." in shown.err
    assert f"volmig migration {command}" in shown.err


@pytest.mark.parametrize("change", [{"source_retention_seconds": 0}, {"source": "h@elsewhere#x"}])
def test_show_is_silent_of_what_is_no_old_storage_to_go_back_to(
    use: Use, capsys: Capture, change: dict[str, Any]
) -> None:
    done, retired = kept(datetime.now(UTC))
    use(show_migration=replace(done, **change), history=[], kept_storage=retired)
    assert main(["migration", "show", "m", "-f", "json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["source_kept_until"] is None
    assert shown.err == ""
