"""Checkpoints survive as bytes and as a file, whatever ends the process; anything else is refused with a reason."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.transfer.base import Checkpoint, EndMark
from volmig.transfer.resume.checkpoints import CheckpointFile
from volmig.transfer.resume.recording import decode, decode_record, encode

MIB = 1024**2
DESTINATION = EndMark(identity=("file", "fe00", "12", "ab"), version=None)
CHECKPOINT = Checkpoint(
    size_bytes=100 * MIB,
    position_bytes=64 * MIB,
    generation=3,
    source=EndMark(identity=("device", "dm/uuid", "LVM-\udcff"), version=(1, 2, 2**70)),
    destination=DESTINATION,
    digest_algorithm="blake3",
    segments=bytes(range(128)),
)


def checkpoint(position_bytes: int = 64 * MIB, **changes: object) -> Checkpoint:
    return dataclasses.replace(CHECKPOINT, position_bytes=position_bytes, **changes)


_MARKS = st.builds(
    EndMark,
    identity=st.none() | st.lists(st.text(max_size=8), max_size=4).map(tuple),
    version=st.none() | st.lists(st.integers(), max_size=4).map(tuple),
)
_CHECKPOINTS = st.builds(
    Checkpoint,
    size_bytes=st.integers(2**40, 2**63 - 1),
    position_bytes=st.integers(0, 2**40),
    generation=st.integers(1, 2**40),
    source=_MARKS,
    destination=_MARKS,
    digest_algorithm=st.just("blake3"),
    segments=st.binary(max_size=200),
)


class TestBytes:
    @given(_CHECKPOINTS)
    @settings(max_examples=60, deadline=None)
    def test_what_was_encoded_is_decoded(self, made: Checkpoint) -> None:
        assert decode(encode(made)) == made

    def test_the_largest_takes_less_than_is_read(self) -> None:
        large = checkpoint(segments=os.urandom(65536 * 32))
        assert decode(encode(large)) == large

    def test_cut_off_anywhere_it_is_refused(self) -> None:
        data = encode(CHECKPOINT)
        for length in range(len(data) - 1):
            with pytest.raises(errors.CheckpointUnusable):
                decode(data[:length])

    def test_damaged_anywhere_it_is_refused_or_the_same(self) -> None:
        data = encode(CHECKPOINT)
        refused = 0
        for place in range(len(data)):
            for bit in (0, 3, 6):
                damaged = bytearray(data)
                damaged[place] ^= 1 << bit
                try:
                    assert decode(bytes(damaged)) == CHECKPOINT
                except errors.CheckpointUnusable:
                    refused += 1
        assert refused > len(data) * 2

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0" * 4096,
            b"{}",
            b"[]",
            b"null",
            b"1",
            b'"text"',
            b"\xff\xfe",
            b'{"volmig_checkpoint": 1}',
            b'{"volmig_checkpoint": true, "sha256": "", "content": null}',
            b'{"volmig_checkpoint": 1.0, "sha256": "", "content": null}',
            b'{"volmig_checkpoint": 1, "volmig_checkpoint": 1, "sha256": "", "content": null}',
            b'{"volmig_checkpoint": NaN}',
            b"[" * 100_000,
            b'{"volmig_checkpoint": 1, "sha256": "", "content": ' + b"[" * 700 + b"]" * 700 + b"}",
            b"9" * 5000,
            b" " * (17 * MIB),
        ],
        ids=range(17),
    )
    def test_anything_else_is_refused(self, data: bytes) -> None:
        with pytest.raises(errors.CheckpointUnusable) as caught:
            decode(data, "/a/file")
        assert caught.value.message.startswith("/a/file cannot be used as a checkpoint: ")

    def test_a_newer_one_says_so(self) -> None:
        with pytest.raises(errors.CheckpointUnusable, match=r"a newer volmig wrote it \(format 2; this one knows 1\)"):
            decode(b'{"volmig_checkpoint": 2, "whatever": []}')

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"position_bytes": 101 * MIB}, "behind the end"),
            ({"position_bytes": -1}, "position_bytes"),
            ({"generation": 0}, "generation"),
            ({"digest_algorithm": ""}, "algorithm"),
            ({"size_bytes": True}, "size_bytes"),
            ({"source": EndMark(identity=None, version=("x",))}, "version"),
            ({"source": EndMark(identity=(1,), version=None)}, "text"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, changes: dict[str, object], reason: str) -> None:
        with pytest.raises(errors.CheckpointUnusable, match=reason):
            decode(encode(dataclasses.replace(CHECKPOINT, **changes)))

    def test_a_record_without_progress_is_no_checkpoint(self, tmp_path: Path) -> None:
        with CheckpointFile(tmp_path / "c") as kept:
            kept.begin()
        with pytest.raises(errors.CheckpointUnusable, match="nothing was copied yet"):
            decode((tmp_path / "c").read_bytes())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "copy.checkpoint"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


class TestFile:
    def test_a_run_goes_on_from_where_the_one_before_was(self, path: Path) -> None:
        with CheckpointFile(path) as first:
            assert first.begin() is None
            assert (first.generation, first.has_checkpoint, first.destination) == (1, False, None)
            first.name_destination(DESTINATION.identity)
            first.save(checkpoint(32 * MIB))
            first.save(checkpoint(64 * MIB))
        assert path.stat().st_mode & 0o777 == 0o600
        with CheckpointFile(path) as second:
            found = second.begin()
            assert found == checkpoint(64 * MIB, generation=1)
            assert (second.generation, second.destination) == (2, DESTINATION.identity)
            second.save(checkpoint(96 * MIB, generation=77))
            assert decode(path.read_bytes()) == checkpoint(96 * MIB, generation=2)
            second.finish()
        assert names(path) == []

    def test_the_generation_is_claimed_before_anything_is_saved(self, path: Path) -> None:
        for generation in (1, 2, 3):
            with CheckpointFile(path) as kept:
                assert kept.begin() is None
                assert kept.generation == generation
                assert decode_record(path.read_bytes(), "x").generation == generation
        with CheckpointFile(path) as kept:
            kept.begin()
            kept.save(checkpoint())
        with CheckpointFile(path) as kept:
            found = kept.begin()
            assert found is not None
            # A copy numbers its checkpoints from that of the one that it is given.
            assert found.generation + 1 == kept.generation == 5

    def test_the_destination_is_known_even_when_nothing_was_saved(self, path: Path) -> None:
        with CheckpointFile(path) as kept:
            kept.begin()
            kept.name_destination(("file", "1"))
        with CheckpointFile(path) as kept:
            assert kept.begin() is None
            assert kept.destination == ("file", "1")

    def test_two_at_once_are_refused(self, path: Path) -> None:
        with CheckpointFile(path) as first, CheckpointFile(path) as second:
            first.begin()
            for _ in range(3):
                with pytest.raises(errors.CheckpointBusy):
                    second.begin()
                second.close()
                first.save(checkpoint())
            first.close()
            assert second.begin() == checkpoint(generation=1)

    def test_one_that_lost_its_lock_writes_nothing_more(self, path: Path) -> None:
        with CheckpointFile(path) as paused, CheckpointFile(path) as other:
            paused.begin()
            paused.save(checkpoint(32 * MIB))
            # As on storage whose server has restarted, and forgotten its locks.
            fcntl.flock(paused._fd, fcntl.LOCK_UN)
            other.begin()
            other.save(checkpoint(48 * MIB))
            before = path.read_bytes()
            for attempt in (lambda: paused.save(checkpoint(64 * MIB)), paused.finish):
                with pytest.raises(errors.CheckpointSuperseded, match=r"run 2 of it .* this one was run 1"):
                    attempt()
            assert path.read_bytes() == before
            other.finish()
            with pytest.raises(errors.CheckpointSuperseded, match="the file was removed"):
                paused.save(checkpoint(64 * MIB))
        assert names(path) == []

    def test_one_whose_file_was_replaced_by_something_else_leaves_that_alone(self, path: Path) -> None:
        with CheckpointFile(path) as kept:
            kept.begin()
            path.unlink()
            path.write_bytes(b"somebody's")
            with pytest.raises(errors.CheckpointSuperseded, match="something else is in its place"):
                kept.save(checkpoint())
        assert path.read_bytes() == b"somebody's"

    def test_withdrawing_removes_only_what_this_run_made_in_vain(self, path: Path) -> None:
        with CheckpointFile(path) as kept:
            kept.begin()
            kept.withdraw()
        assert names(path) == []
        with CheckpointFile(path) as kept:
            kept.begin()
            kept.save(checkpoint())
            kept.withdraw()
        with CheckpointFile(path) as kept:
            kept.begin()
            kept.withdraw()
        assert decode(path.read_bytes()).position_bytes == 64 * MIB

    @pytest.mark.parametrize("content", [b"", b"text", encode(CHECKPOINT)[:-20]])
    def test_a_damaged_file_is_refused_and_stays(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with CheckpointFile(path) as kept, pytest.raises(errors.CheckpointUnusable):
            kept.begin()
        assert path.read_bytes() == content
        assert names(path) == [path.name]

    @pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory"])
    def test_anything_but_a_regular_file_is_refused(self, path: Path, kind: str) -> None:
        target = path.parent / "target"
        if kind == "link":
            target.write_bytes(encode(CHECKPOINT))
        if kind in ("link", "dangling"):
            path.symlink_to(target)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        with CheckpointFile(path) as kept, pytest.raises(errors.CheckpointUnusable, match="not a regular file"):
            kept.begin()
        assert not target.exists() or target.read_bytes() == encode(CHECKPOINT)

    def test_no_directory_is_an_error_that_names_the_file(self, tmp_path: Path) -> None:
        with CheckpointFile(tmp_path / "no" / "file") as kept, pytest.raises(errors.TransferFailed, match="no/file"):
            kept.begin()
        with CheckpointFile("/") as kept, pytest.raises(errors.CheckpointUnusable):
            kept.begin()

    def test_a_write_that_fails_leaves_the_checkpoint_before(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        with CheckpointFile(path) as kept:
            kept.begin()
            kept.save(checkpoint(32 * MIB))
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", full)
                with pytest.raises(errors.DiskFull):
                    kept.save(checkpoint(64 * MIB))
            assert decode(path.read_bytes()).position_bytes == 32 * MIB
            assert names(path) == [path.name]
            kept.save(checkpoint(64 * MIB))
        assert decode(path.read_bytes()).position_bytes == 64 * MIB

    def test_leftovers_of_a_kill_are_cleaned_up_and_other_files_are_not(self, path: Path) -> None:
        with CheckpointFile(path) as kept:
            kept.begin()
        others = [".copy.checkpoint.notes.new", ".copy.checkpoint.0123456789abcdef", ".other.0123456789abcdef.new"]
        for name in (*others, ".copy.checkpoint.0123456789abcdef.new"):
            (path.parent / name).touch()
        with CheckpointFile(path) as kept:
            kept.begin()
        assert names(path) == sorted([path.name, *others])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.transfer.test_checkpoints import MIB, checkpoint
from volmig.transfer.resume import checkpoints
from volmig.transfer.resume.recording import decode_record

directory = Path(sys.argv[1])
path = directory / "file"

def work(position):
    with checkpoints.CheckpointFile(path) as kept:
        kept.begin()
        kept.save(checkpoint(position))
        kept.finish()

def run(number):
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != checkpoints.__file__:
            return None
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    work(1000 * number)
    os._exit(0)

generation, states, number = 0, set(), 0
while True:
    number += 1
    child = os.fork()
    if not child:
        run(number)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    if path.exists():
        record = decode_record(path.read_bytes(), "file")
        assert record.generation >= generation, (record, generation)
        generation = record.generation
        states.add("none" if record.checkpoint is None else record.checkpoint.position_bytes - 1000 * number)
    else:
        generation = 0
        states.add("missing")
assert not path.exists()
assert [name for name in os.listdir(directory)] == [], os.listdir(directory)
assert {"missing", "none", 0} <= states, states
print(number)
"""


def test_killed_anywhere_it_leaves_a_file_that_loads_or_none(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), root], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80


def test_one_of_two_processes_that_begin_at_once_gets_it(path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from volmig import errors\n"
        "from volmig.transfer.resume.checkpoints import CheckpointFile\n"
        "sys.stdin.readline()\n"
        "with CheckpointFile(sys.argv[1]) as kept:\n"
        "    try:\n"
        "        kept.begin()\n"
        "    except errors.CheckpointBusy:\n"
        "        print('busy', flush=True)\n"
        "    else:\n"
        "        print('got it', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    arguments = [sys.executable, "-c", script, str(path), str(Path(__file__).parents[3])]
    both = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(3)
    ]
    try:
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
        said = sorted(process.stdout.readline().strip() for process in both if process.stdout is not None)
        assert said == ["busy", "busy", "got it"]
    finally:
        for process in both:
            process.communicate("\n", timeout=30)
    assert names(path) == [path.name]
    assert json.loads(path.read_text())["content"]["generation"] == 1
