"""``volmig copy`` with a copy that is made up: what it is given, what is said, and what is left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.waiting import LONG, until
from volmig import errors, transfer
from volmig.cli import target
from volmig.cli.app import main
from volmig.cli.copy_run import status_line
from volmig.transfer.base import Checkpoint, CopyStage, EndMark, Tail, TransferProgress, TransferResult, Verify
from volmig.transfer.ends.identity import identity_of
from volmig.transfer.guard import occupied
from volmig.transfer.guard.occupied import Obstacle
from volmig.transfer.resume.checkpoints import CheckpointFile
from volmig.transfer.resume.recording import decode, decode_record

MIB = 1024**2


def result(**changes: Any) -> TransferResult:
    values: dict[str, Any] = {
        "engine": "chunked",
        "engine_reason": "because",
        "means": "8 at once",
        "bytes_total": 3 * MIB,
        "bytes_copied": 2 * MIB,
        "bytes_zero": MIB,
        "bytes_resumed": MIB,
        "copy_seconds": 2.0,
        "verify_seconds": 0.12345,
        "verify": Verify.DIGEST,
        "digest_algorithm": "blake3",
        "source_digest": "ab",
        "destination_digest": "ab",
    }
    return TransferResult(**(values | changes))


class FakeCopy:
    """Stands for :func:`volmig.transfer.copy`; writes what it is to write, and does what it is told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.act: Callable[[dict[str, Any]], None] = lambda _: None

    def __call__(self, source: str, destination: str, **given: Any) -> TransferResult:
        call = given | {"source": source, "destination": destination}
        self.calls.append(call)
        given["progress"](progress(MIB))
        with open(destination, "r+b", buffering=0) as file:
            file.write(b"copied")
        self.act(call)
        return result()

    @property
    def call(self) -> dict[str, Any]:
        [call] = self.calls
        return call


def progress(bytes_done: int, **changes: Any) -> TransferProgress:
    values: dict[str, Any] = {
        "stage": CopyStage.COPY,
        "bytes_total": 3 * MIB,
        "bytes_done": bytes_done,
        "bytes_skipped": 0,
        "rate_bytes": 0.0,
        "eta_seconds": None,
    }
    return TransferProgress(**(values | changes))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCopy:
    made = FakeCopy()
    monkeypatch.setattr(transfer, "copy", made)
    return made


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a source of 3 MiB in it, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").write_bytes(b"x" * (3 * MIB))
    return tmp_path


def raising(error: BaseException) -> Callable[[dict[str, Any]], None]:
    def act(call: dict[str, Any]) -> None:
        raise error

    return act


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestCall:
    def test_all_options_reach_the_copy(self, fake: FakeCopy, ends: Path) -> None:
        words = (
            "copy source new --verify compare --limit 50MiB/s --engine dd --size 1MiB --source-format raw "
            "--destination-format raw --tail zero --chunk-bytes 64KiB --backing-directory /a --backing-directory /b "
            "--ignore-header"
        )
        assert main(words.split()) == 0
        call = fake.call
        options = call["options"]
        assert call["source"] == "source"
        assert call["size_bytes"] == MIB
        assert options.verify is Verify.COMPARE
        assert options.tail is Tail.ZERO
        assert options.bandwidth_limit_bytes == 50 * MIB
        assert options.engine == "dd"
        assert options.chunk_bytes == 65536
        assert options.backing_directories == ("/a", "/b")
        assert options.ignore_header is True
        assert options.destination_is_zero is True
        assert "checkpoint" not in call

    def test_defaults(self, fake: FakeCopy, ends: Path) -> None:
        before = descriptors()
        assert main(["copy", "source", "new"]) == 0
        options = fake.call["options"]
        assert (options.engine, options.verify, options.tail) == ("auto", Verify.DIGEST, Tail.KEEP)
        assert (options.source_format, options.destination_format) == ("raw", "raw")
        assert options.chunk_bytes == transfer.CopyOptions().chunk_bytes
        assert options.ignore_header is False
        assert fake.call["size_bytes"] == 3 * MIB
        assert descriptors() == before

    def test_needs_neither_configuration_nor_database(
        self, fake: FakeCopy, ends: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/nonexistent")
        assert main(["--config-file", "/nonexistent", "copy", "source", "new"]) == 0

    @pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64KiB", 65536), ("1MiB", MIB)])
    def test_a_bare_number_of_chunk_bytes_is_bytes(self, fake: FakeCopy, ends: Path, text: str, size: int) -> None:
        assert main(["copy", "source", "new", "--chunk-bytes", text]) == 0
        assert fake.call["options"].chunk_bytes == size

    @pytest.mark.parametrize(
        "words", [("--limit", "50"), ("--size", "0"), ("--size", "x"), ("--chunk-bytes", "1KB"), ("-c", "nosuch")]
    )
    def test_a_bad_value_is_a_usage_error_before_anything_happens(
        self, fake: FakeCopy, ends: Path, words: tuple[str, ...]
    ) -> None:
        assert main(["copy", "source", "new", *words]) == 2
        assert fake.calls == []
        assert not (ends / "new").exists()


class TestOutput:
    def test_json_has_plain_values(self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["copy", "source", "new", "-f", "json"]) == 0
        out, told = capsys.readouterr()
        assert json.loads(out) == {
            "engine": "chunked",
            "engine_reason": "because",
            "means": "8 at once",
            "bytes_total": 3 * MIB,
            "bytes_copied": 2 * MIB,
            "bytes_zero": MIB,
            "bytes_resumed": MIB,
            "copy_seconds": 2.0,
            "verify_seconds": 0.123,
            "rate_bytes": MIB,
            "verify": "digest",
            "digest_algorithm": "blake3",
            "source_digest": "ab",
            "destination_digest": "ab",
        }
        assert told.splitlines() == ["copy: 1.00 MiB of 3.00 MiB (33 %)", "done"]

    def test_quiet_says_nothing_beside_the_result(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["-q", "copy", "source", "new", "-f", "value", "-c", "rate"]) == 0
        assert capsys.readouterr() == (f"{MIB}\n", "")

    def test_a_table_is_for_the_eye(self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["copy", "source", "new"]) == 0
        out = capsys.readouterr().out
        for text in ("| 3145728 (3.00 MiB) ", "| 2.000 ", "| 0.123 ", "| rate ", "| 1.00 MiB/s "):
            assert text in out

    def test_a_status_line_tells_bytes_and_holes(self) -> None:
        assert status_line(None) == "copy: not begun yet"
        assert status_line(progress(MIB)) == "copy: 1.00 MiB of 3.00 MiB (33 %); 1048576 bytes"
        assert status_line(progress(MIB, bytes_skipped=1024)).endswith("1048576 bytes, 1.00 KiB of it holes and zeroes")


class TestNewDestination:
    def test_is_made_for_its_owner_only_as_large_as_the_source(self, fake: FakeCopy, ends: Path) -> None:
        assert main(["copy", "source", "new"]) == 0
        status = (ends / "new").stat()
        assert (status.st_mode & 0o777, status.st_size) == (0o600, 3 * MIB)
        assert (ends / "new").read_bytes()[:6] == b"copied"

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (errors.TransferFailed(path="x", offset=0, reason="r"), 5),
            (errors.UnsupportedTransfer(engine="dd", reason="r"), 2),
            (RuntimeError("bug"), 6),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_is_removed_when_the_copy_fails(
        self, fake: FakeCopy, ends: Path, error: BaseException, status: int
    ) -> None:
        fake.act = raising(error)
        before = descriptors()
        assert main(["copy", "source", "new"]) == status
        assert not (ends / "new").exists()
        assert descriptors() == before

    def test_what_took_its_place_is_not_removed(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def replace(call: dict[str, Any]) -> None:
            (ends / "new").unlink()
            (ends / "new").write_text("somebody's")

        fake.act = replace
        assert main(["copy", "source", "new"]) == 5
        assert (ends / "new").read_text() == "somebody's"
        assert "something else has taken its place" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["no/new", "source/new", "dangling", "\0"])
    def test_that_cannot_be_made_is_refused(
        self, fake: FakeCopy, ends: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (ends / "dangling").symlink_to("nowhere")
        assert main(["copy", "source", name]) == 2
        assert "[destination-not-writable]" in capsys.readouterr().err
        assert fake.calls == []
        assert not (ends / "nowhere").exists()


class TestPresentDestination:
    def test_an_empty_file_is_used_and_emptied_again_when_the_copy_fails(self, fake: FakeCopy, ends: Path) -> None:
        (ends / "present").touch(mode=0o640)
        assert main(["copy", "source", "present"]) == 0
        assert (ends / "present").stat().st_size == 3 * MIB
        assert fake.call["options"].destination_is_zero is True
        (ends / "present").write_bytes(b"")
        fake.act = raising(errors.DiskFull(path="x", offset=0))
        assert main(["copy", "source", "present"]) == 5
        assert (ends / "present").stat().st_size == 0
        assert (ends / "present").stat().st_mode & 0o777 == 0o640

    def test_a_file_with_content_is_refused_unless_forced(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (ends / "my present").write_bytes(b"precious")
        assert main(["copy", "source", "my present"]) == 2
        told = capsys.readouterr().err
        assert "my present is not overwritten: it is a file of 8 bytes. [destination-occupied]" in told
        assert "ls -l 'my present'" in told
        assert "--force" in told
        assert (ends / "my present").read_bytes() == b"precious"
        assert fake.calls == []
        assert main(["copy", "source", "my present", "--force"]) == 0
        assert "Overwriting my present although it is a file of 8 bytes." in capsys.readouterr().err
        assert fake.call["options"].destination_is_zero is False
        assert (ends / "my present").stat().st_size == 3 * MIB

    def test_a_larger_one_keeps_its_size(self, fake: FakeCopy, ends: Path) -> None:
        (ends / "present").write_bytes(b"y" * (4 * MIB))
        assert main(["copy", "source", "present", "--force"]) == 0
        assert (ends / "present").stat().st_size == 4 * MIB

    def test_one_with_content_stays_when_the_copy_fails(self, fake: FakeCopy, ends: Path) -> None:
        (ends / "present").write_bytes(b"precious")
        fake.act = raising(errors.DiskFull(path="x", offset=0))
        assert main(["copy", "source", "present", "--force"]) == 5
        assert (ends / "present").stat().st_size == 3 * MIB

    def test_who_uses_it_is_told(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (ends / "present").touch()
        found = [Obstacle(what="it is swap", shown_by="swapon"), Obstacle(what="it is a loop", shown_by="losetup")]
        monkeypatch.setattr(occupied, "obstacles", lambda *_: found)
        assert main(["copy", "source", "present"]) == 2
        told = capsys.readouterr().err
        assert "it is swap; it is a loop. [destination-occupied]" in told
        assert "`swapon`" in told

    @pytest.mark.parametrize("path", ["/dev/null", ".", "/dev/zero"])
    def test_what_is_neither_file_nor_device_is_refused(self, fake: FakeCopy, ends: Path, path: str) -> None:
        assert main(["copy", "source", path, "--force"]) == 2
        assert fake.calls == []

    def test_a_pipe_is_refused_and_does_not_hang(self, fake: FakeCopy, ends: Path) -> None:
        os.mkfifo(ends / "pipe")
        assert main(["copy", "source", "pipe", "--force"]) == 2

    def test_what_is_put_in_its_place_after_the_check_is_not_written_to(self, fake: FakeCopy, ends: Path) -> None:
        (ends / "present").touch()
        (ends / "victim").write_text("precious")
        real = transfer.copy

        def swap(source: str, destination: str, **given: Any) -> TransferResult:
            (ends / "present").unlink()
            (ends / "present").symlink_to("victim")
            return real(source, destination, **given)

        transfer.copy = swap  # type: ignore[assignment]
        try:
            assert main(["copy", "source", "present"]) == 5
        finally:
            transfer.copy = real
        assert (ends / "victim").read_text() == "precious"


def test_a_missing_source_leaves_no_destination(fake: FakeCopy, ends: Path) -> None:
    assert main(["copy", "nosuch", "new", "--resume", "kept"]) != 0
    assert sorted(path.name for path in ends.iterdir()) == ["source"]


@pytest.mark.parametrize("source", ["nosuch", "source/x", "\0", "x" * 300])
def test_a_mistyped_source_is_a_fault_of_the_request(
    fake: FakeCopy, ends: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["copy", source, "new"]) == 2
    told = capsys.readouterr().err
    assert "[path-unusable]" in told
    assert "hint: Check the spelling" in told
    assert sorted(path.name for path in ends.iterdir()) == ["source"]


def test_a_source_without_a_name(fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", "", "new"]) == 2
    assert "The source '' cannot be used: it has no name. [path-unusable]" in capsys.readouterr().err


def test_more_than_the_source_has_is_a_fault_of_the_request(
    fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["copy", "--size", "4MiB", "source", "new"]) == 2
    told = capsys.readouterr().err
    assert f"source has {3 * MIB} bytes, and {4 * MIB} are to be copied" in told
    assert "leave out --size" in told
    assert sorted(path.name for path in ends.iterdir()) == ["source"]


def test_a_file_that_hides_its_size_is_refused_and_an_empty_one_is_not(
    fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["copy", "/proc/version", "new"]) == 2
    assert "/proc/version is not acceptable: it says that it has 0 bytes" in capsys.readouterr().err
    assert sorted(path.name for path in ends.iterdir()) == ["source"]
    (ends / "empty").touch()
    assert main(["copy", "empty", "new"]) == 0


def test_a_mounted_source_is_a_warning(
    fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupied, "mounted_at", lambda *_: ["/srv"])
    assert main(["copy", "source", "new"]) == 0
    assert "Warning: source is mounted at /srv." in capsys.readouterr().err


def test_an_nbd_address_is_passed_through(fake: FakeCopy, ends: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(source: str, destination: str, **given: Any) -> TransferResult:
        fake.calls.append({"destination": destination})
        return result()

    monkeypatch.setattr(transfer, "copy", take)
    assert main(["copy", "source", "nbd+unix:///x?socket=/s"]) == 0
    assert fake.call["destination"] == "nbd+unix:///x?socket=/s"
    assert sorted(path.name for path in ends.iterdir()) == ["source"]


def test_an_error_names_the_destination_as_it_was_given(
    fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(call: dict[str, Any]) -> None:
        raise errors.TransferFailed(path=call["destination"], offset=7, reason=f"{call['destination']} is bad")

    fake.act = fail
    assert main(["copy", "source", "new"]) == 5
    told = capsys.readouterr().err
    assert "Copying failed at byte 7 of new: new is bad. [transfer-failed]" in told
    assert "The unfinished new was removed." in told
    assert "/proc/" not in told


def test_a_cancellation_that_names_a_stuck_request_says_so(
    fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.act = raising(errors.TransferCancelled(bytes_done=0, bytes_total=1, hint="A write at byte 7 hangs."))
    assert main(["copy", "source", "new"]) == 130
    assert "hint: A write at byte 7 hangs. The unfinished new was removed." in capsys.readouterr().err


class TestHanging:
    """Storage that does not answer when something is taken back."""

    @pytest.fixture
    def release(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        go_on = threading.Event()
        monkeypatch.setattr(target, "_UNDO_SECONDS", 0.2, raising=False)
        yield go_on
        go_on.set()
        until(lambda: not [one for one in threading.enumerate() if one.name == "copy-undo"])

    @pytest.mark.parametrize(("call", "present"), [("unlink", False), ("ftruncate", True)])
    def test_the_error_is_told_and_the_process_left(
        self,
        fake: FakeCopy,
        ends: Path,
        call: str,
        present: bool,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        release: threading.Event,
    ) -> None:
        if present:
            (ends / "new").touch()
        real, left = getattr(os, call), []

        def hang(*given: Any, **how: Any) -> None:
            release.wait(2 * LONG)
            real(*given, **how)

        def act(_: dict[str, Any]) -> None:
            monkeypatch.setattr(os, call, hang)
            raise errors.TransferCancelled(bytes_done=0, bytes_total=1)

        def leave(status: int) -> None:
            left.append((status, capsys.readouterr().err))

        monkeypatch.setattr(os, "_exit", leave)
        fake.act = act
        before, began = descriptors(), time.monotonic()
        main(["copy", "source", "new"])
        assert time.monotonic() - began < LONG
        [(status, told)] = left
        assert status == 130
        assert "[transfer-cancelled]" in told
        doing = "emptying" if present else "removing"
        assert f"new is unfinished, and {doing} it hangs: its storage does not answer." in told
        release.set()
        until(lambda: descriptors() == before)
        assert not (ends / "new").exists() or present

    def test_a_thread_that_outlives_its_work_is_not_waited_for(
        self, fake: FakeCopy, ends: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event
    ) -> None:
        class Lingering(threading.Thread):
            """As with Python 3.13, where the end of a thread is that of the system's, which waits for its requests."""

            def run(self) -> None:
                super().run()
                if self.name == "copy":
                    release.wait(2 * LONG)

        monkeypatch.setattr(threading, "Thread", Lingering)
        began = time.monotonic()
        assert main(["copy", "source", "new"]) == 0
        assert time.monotonic() - began < LONG


class TestSignals:
    def send(self, number: int) -> None:
        os.kill(os.getpid(), number)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_the_first_cancels(
        self, fake: FakeCopy, ends: Path, number: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = {one: signal.getsignal(one) for one in (number, signal.SIGUSR1)}

        def interrupted(call: dict[str, Any]) -> None:
            self.send(number)
            while True:
                call["control"].check()
                time.sleep(0.01)

        fake.act = interrupted
        assert main(["copy", "source", "new"]) == 130
        told = capsys.readouterr().err
        assert "Cancelling the copy." in told
        assert "[transfer-cancelled]" in told
        assert "hint: The source is unchanged. The unfinished new was removed." in told
        assert {one: signal.getsignal(one) for one in before} == before
        assert not (ends / "new").exists()

    def test_the_second_says_what_it_waits_for_and_the_third_leaves(
        self, fake: FakeCopy, ends: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        left: list[int] = []
        told = ""

        def said(what: str) -> bool:
            nonlocal told
            told += capsys.readouterr().err
            return what in told

        def hanging(call: dict[str, Any]) -> None:
            for answer in ("Cancelling", "Still waiting for the storage"):
                self.send(signal.SIGINT)
                until(lambda answer=answer: said(answer))
            self.send(signal.SIGINT)
            until(lambda: left)

        monkeypatch.setattr(os, "_exit", left.append)
        fake.act = hanging
        main(["copy", "source", "new", "--resume", "kept"])
        told += capsys.readouterr().err
        assert left == [130]
        assert told.index("Cancelling") < told.index("Still waiting for the storage") < told.index("Left the copy")
        assert "begin again with: volmig copy --resume kept source new" in told

    @pytest.mark.parametrize("quiet", [[], ["-q"]])
    def test_a_status_is_shown_on_request(
        self, fake: FakeCopy, ends: Path, quiet: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = ""

        def is_shown() -> bool:
            nonlocal told
            told += capsys.readouterr().err
            return "copy: 1.00 MiB of 3.00 MiB (33 %); 1048576 bytes\n" in told

        def asked(call: dict[str, Any]) -> None:
            self.send(signal.SIGUSR1)
            until(is_shown)

        fake.act = asked
        assert main([*quiet, "copy", "source", "new"]) == 0
        assert is_shown()


class TestResume:
    def checkpoint(self, path: Path) -> Checkpoint:
        with path.open("rb") as file:
            mark = EndMark(identity=identity_of(file.fileno()), version=None)
        return Checkpoint(
            size_bytes=3 * MIB,
            position_bytes=MIB,
            generation=1,
            source=EndMark(identity=("s",), version=None),
            destination=mark,
            digest_algorithm="blake3",
            segments=b"d" * 32,
        )

    def interrupted(self, ends: Path, *, saved: bool = True) -> Callable[[dict[str, Any]], None]:
        def act(call: dict[str, Any]) -> None:
            if saved:
                call["on_checkpoint"](self.checkpoint(ends / "new"))
            raise errors.TransferFailed(path=call["destination"], offset=MIB, reason="r")

        return act

    def test_goes_on_from_what_was_saved_and_removes_the_file_at_the_end(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["copy", "--limit", "1MiB", "--resume", "my kept", "source", "new"]
        fake.act = self.interrupted(ends)
        assert main(words) == 5
        told = capsys.readouterr().err
        assert "Go on with: volmig copy --limit 1048576B --resume 'my kept' source new" in told
        assert fake.call["checkpoint"] is None
        assert (ends / "new").exists()
        fake.act = lambda _: None
        assert main(words) == 0
        assert fake.calls[1]["checkpoint"] == self.checkpoint(ends / "new")
        assert fake.calls[1]["options"].destination_is_zero is False
        assert sorted(path.name for path in ends.iterdir()) == ["new", "source"]

    def test_begins_again_when_nothing_was_saved(self, fake: FakeCopy, ends: Path) -> None:
        words = ["copy", "--resume", "kept", "source", "new"]
        fake.act = self.interrupted(ends, saved=False)
        assert main(words) == 5
        assert decode_record((ends / "kept").read_bytes(), "x").destination is not None
        fake.act = lambda _: None
        assert main(words) == 0
        assert [call["checkpoint"] for call in fake.calls] == [None, None]

    @pytest.mark.parametrize("gone", [True, False])
    def test_another_destination_is_refused_and_nothing_is_touched(
        self, fake: FakeCopy, ends: Path, gone: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["copy", "--resume", "kept", "--force", "source", "new"]
        fake.act = self.interrupted(ends)
        main(words)
        # Renamed, so that its number is not used again.
        (ends / "new").rename(ends / "elsewhere")
        if not gone:
            (ends / "new").write_bytes(b"precious")
        capsys.readouterr()
        assert main(words) == 2
        assert "[checkpoint-mismatch]" in capsys.readouterr().err
        assert len(fake.calls) == 1
        assert decode((ends / "kept").read_bytes()).position_bytes == MIB
        assert (ends / "new").exists() is not gone
        assert gone or (ends / "new").read_bytes() == b"precious"

    def test_a_refusal_leaves_nothing_behind(self, fake: FakeCopy, ends: Path) -> None:
        fake.act = raising(errors.UnsupportedTransfer(engine="dd", reason="it cannot"))
        assert main(["copy", "--resume", "kept", "source", "new"]) == 2
        assert sorted(path.name for path in ends.iterdir()) == ["source"]

    def test_an_engine_that_cannot_resume_is_refused(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["copy", "--resume", "kept", "--engine", "dd", "source", "new"]) == 2
        assert "Leave out --resume" in capsys.readouterr().err
        assert fake.calls == []
        assert sorted(path.name for path in ends.iterdir()) == ["source"]

    def test_a_mismatch_names_the_checkpoint(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.act = raising(errors.CheckpointMismatch(path="source", reason="it is of another source"))
        assert main(["copy", "--resume", "kept", "source", "new"]) == 2
        assert "The checkpoint kept does not belong to this copy" in capsys.readouterr().err

    def test_a_damaged_checkpoint_is_refused(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (ends / "kept").write_bytes(b"{")
        assert main(["copy", "--resume", "kept", "source", "new"]) == 2
        assert "[checkpoint-unusable]" in capsys.readouterr().err
        assert not (ends / "new").exists()

    @pytest.mark.parametrize("error", [errors.VerificationFailed, errors.SourceChanged])
    def test_what_was_found_wrong_is_not_gone_on_from(
        self, fake: FakeCopy, ends: Path, error: type[errors.VolmigError], capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["copy", "--resume", "kept", "source", "new"]

        def act(call: dict[str, Any]) -> None:
            call["on_checkpoint"](self.checkpoint(ends / "new"))
            raise error(**dict.fromkeys(error.field_names(), "x"))

        fake.act = act
        assert main(words) == 5
        told = capsys.readouterr().err
        assert "begin again, from the first byte, with: volmig copy --resume kept source new" in told
        assert "Go on with" not in told
        record = decode_record((ends / "kept").read_bytes(), "x")
        assert record.checkpoint is None
        assert record.destination is not None
        fake.act = lambda _: None
        assert main(words) == 0
        assert fake.calls[1]["checkpoint"] is None
        assert sorted(path.name for path in ends.iterdir()) == ["new", "source"]

    def test_a_checkpoint_that_cannot_be_dropped_is_named(
        self, fake: FakeCopy, ends: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def act(call: dict[str, Any]) -> None:
            (ends / "kept").unlink()
            raise errors.VerificationFailed(path="x", offset=0)

        fake.act = act
        assert main(["copy", "--resume", "kept", "source", "new"]) == 5
        told = capsys.readouterr().err
        assert "[verification-failed]" in told
        assert "remove kept first" in told

    @pytest.mark.parametrize("moment", ["sizing", "copying"])
    def test_a_kill_at_any_moment_leaves_what_the_same_command_takes(
        self, fake: FakeCopy, ends: Path, moment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["copy", "--resume", "kept", "source", "new"]
        real = os.ftruncate

        def sizing(fd: int, size: int) -> None:
            real(fd, size)
            if moment == "sizing":
                raise SystemExit(9)

        def killed(call: dict[str, Any]) -> None:
            raise SystemExit(9)

        monkeypatch.setattr(os, "ftruncate", sizing)
        fake.act = killed
        with pytest.raises(SystemExit):
            main(words)
        monkeypatch.setattr(os, "ftruncate", real)
        fake.act = lambda _: None
        assert (ends / "new").stat().st_size == 3 * MIB
        assert main(words) == 0
        assert sorted(path.name for path in ends.iterdir()) == ["new", "source"]

    @pytest.mark.parametrize("kept", ["source", "new", "present", "hard", "soft", "./new", "here/new"])
    @pytest.mark.parametrize("force", [[], ["--force"]])
    def test_it_is_none_of_the_ends(
        self, fake: FakeCopy, ends: Path, kept: str, force: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        (ends / "present").touch()
        os.link("source", "hard")
        (ends / "soft").symlink_to("present")
        (ends / "here").symlink_to(".")
        before = sorted(path.name for path in ends.iterdir())
        destination = "present" if kept in ("present", "soft") else "new"
        assert main(["copy", "--resume", kept, *force, "source", destination]) == 2
        which = "source" if kept in ("source", "hard") else "destination"
        assert f"--resume is not acceptable: {kept} is the {which} of the copy. [request" in capsys.readouterr().err
        assert fake.calls == []
        assert sorted(path.name for path in ends.iterdir()) == before
        assert (ends / "source").read_bytes() == b"x" * (3 * MIB)
        assert (ends / "present").read_bytes() == b""

    @pytest.mark.parametrize("kept", ["no/kept", "source/kept"])
    def test_where_it_cannot_be_made_is_refused(
        self, fake: FakeCopy, ends: Path, kept: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["copy", "--resume", kept, "source", "new"]) == 2
        told = capsys.readouterr().err
        assert f"{kept} cannot be used: " in told
        assert "[path-unusable]" in told
        assert "or name another file" in told
        assert sorted(path.name for path in ends.iterdir()) == ["source"]

    def test_a_read_only_directory_is_refused_and_failing_storage_is_not_blamed_on_the_request(
        self, fake: FakeCopy, ends: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, status in ((errno.EROFS, 2), (errno.EACCES, 2), (errno.EIO, 5)):

            def refuse(self: object, number: int = number) -> None:
                raise errors.TransferFailed(path="k", offset=0, reason="r") from OSError(number, os.strerror(number))

            monkeypatch.setattr(CheckpointFile, "begin", refuse)
            assert main(["copy", "--resume", "kept", "source", "new"]) == status

    def test_one_at_a_time(self, fake: FakeCopy, ends: Path) -> None:
        second: list[int] = []

        def act(call: dict[str, Any]) -> None:
            with pytest.raises(errors.CheckpointBusy):
                from_here(ends / "kept")
            second.append(1)

        fake.act = act
        assert main(["copy", "--resume", "kept", "source", "new"]) == 0
        assert second == [1]


def from_here(path: Path) -> None:
    from volmig.transfer.resume.checkpoints import CheckpointFile

    with CheckpointFile(path) as kept:
        kept.begin()
