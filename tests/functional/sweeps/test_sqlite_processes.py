"""Several processes and threads on one SQLite file, and processes that die."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from volmig import errors
from volmig.model import Migration
from volmig.store.sql import SqlStore
from volmig.testing.store_contract import add_migration, add_volume


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volmig.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{path}")
    yield store
    store.close()


def run(code: str, *args: object, expect: int = 0) -> str:
    """Run *code* in a new Python process and return what it prints."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout


COUNT_UP = """
import sys
from volmig.store.sql import SqlStore
store = SqlStore(f"sqlite:///{sys.argv[1]}")
for _ in range(int(sys.argv[2])):
    with store.writing() as writer:
        volume = writer.get_volume("counter")
        writer.update_volume(volume, size_bytes=volume.size_bytes + 1)
store.close()
"""


def test_processes_lose_no_update(store: SqlStore, path: Path) -> None:
    add_volume(store, id="counter", size_bytes=0)
    workers = [subprocess.Popen([sys.executable, "-c", COUNT_UP, str(path), "25"]) for _ in range(2)]
    for _ in range(25):
        with store.writing() as writer:
            volume = writer.get_volume("counter")
            writer.update_volume(volume, size_bytes=volume.size_bytes + 1)
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    with store.reading() as reader:
        assert reader.get_volume("counter").size_bytes == 75


OPEN_AT_ONCE = """
import sys, time
from volmig.store.sql import SqlStore
time.sleep(max(0, float(sys.argv[2]) - time.time()))
store = SqlStore(f"sqlite:///{sys.argv[1]}")
with store.reading() as reader:
    reader.list_volumes()
store.close()
"""


def test_processes_open_a_new_database_at_once(path: Path) -> None:
    start = str(time.time() + 1.5)
    workers = [subprocess.Popen([sys.executable, "-c", OPEN_AT_ONCE, str(path), start]) for _ in range(4)]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 4
    store = SqlStore(f"sqlite:///{path}")
    with store.reading() as reader:
        assert list(reader.list_volumes()) == []
    store.close()


def test_threads_open_a_new_database_at_once(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.db"
        failures: list[BaseException] = []

        def open_and_close(path: Path = path, failures: list[BaseException] = failures) -> None:
            try:
                SqlStore(f"sqlite:///{path}").close()
            except errors.VolmigError as error:
                failures.append(error)

        threads = [threading.Thread(target=open_and_close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert failures == []


DIE_INSIDE = """
import os, sys
from volmig.store.sql import SqlStore
from volmig.testing.store_contract import make_volume
store = SqlStore(f"sqlite:///{sys.argv[1]}")
with store.writing() as writer:
    writer.add_volume(make_volume(id="whole"))
with store.writing() as writer:
    for number in range(300):
        writer.add_volume(make_volume(id=f"half {number}", status_reason="x" * 5000))
    writer.update_volume(writer.get_volume("whole"), name="half done")
    os._exit(9)
"""


def test_killed_writer_leaves_nothing_half_done(path: Path) -> None:
    run(DIE_INSIDE, path, expect=9)
    store = SqlStore(f"sqlite:///{path}")
    with store.writing() as writer:
        (volume,) = writer.list_volumes()
        assert (volume.id, volume.name) == ("whole", "data")
        writer.update_volume(volume, name="goes on")
    store.close()


SAVE_UNTIL_FENCED = """
import sys
from volmig import errors
from volmig.store.sql import SqlStore
store = SqlStore(f"sqlite:///{sys.argv[1]}")
with store.writing() as writer:
    claimed = writer.claim_migration("copied", owner="first", lease_seconds=0.5)
number = 0
try:
    while True:
        number += 1
        with store.writing() as writer:
            writer.save_checkpoint(claimed, bytes([number % 256]) * int(sys.argv[2]))
        if number == 3:
            print("begun", flush=True)
except errors.LeaseLost:
    sys.exit(7)
"""


@contextlib.contextmanager
def saving(path: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    """Let a process save checkpoints of *size* equal bytes until it is fenced; begins when it has saved three."""
    command = [sys.executable, "-c", SAVE_UNTIL_FENCED, str(path), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "begun\n"
            yield worker
        finally:
            worker.kill()


def take_over(store: SqlStore) -> tuple[Migration, bytes | None]:
    """Claim the migration as soon as its lease is over, and return what the checkpoint was then."""
    end = time.monotonic() + 30
    while True:
        try:
            with store.writing() as writer:
                claimed = writer.claim_migration("copied", owner="second", lease_seconds=60)
                return claimed, writer.load_checkpoint(claimed.id)
        except errors.LeaseLost:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_process_saves_no_checkpoint_behind_a_takeover(store: SqlStore, path: Path) -> None:
    add_migration(store, id="copied")
    with saving(path, 2000) as worker:
        claimed, seen = take_over(store)
        # It goes on trying all the time, and ends by being told.
        assert worker.wait(timeout=60) == 7
    assert seen is not None
    with store.reading() as reader:
        assert reader.load_checkpoint("copied") == seen
    with store.writing() as writer:
        writer.save_checkpoint(claimed, b"goes on")


def test_checkpoint_of_a_killed_process_is_whole(store: SqlStore, path: Path) -> None:
    add_migration(store, id="copied")
    size = 3 << 20
    with saving(path, size):
        time.sleep(0.05)
    _, seen = take_over(store)
    assert seen is not None
    assert seen == seen[:1] * size


def test_busy_database_is_reported_in_time(store: SqlStore, path: Path) -> None:
    impatient = SqlStore(f"sqlite:///{path}", busy_timeout_seconds=0.2)
    with store.writing():
        began = time.monotonic()
        with pytest.raises(errors.StoreBusy, match=r"volmig.db stayed locked for 0\.2 seconds"), impatient.writing():
            pass
        assert time.monotonic() - began < 5
        with impatient.reading() as reader:
            assert list(reader.list_volumes()) == []
    add_volume(impatient)
    impatient.close()


@pytest.mark.parametrize("memory", [False, True])
def test_busy_thread_is_reported_in_time(path: Path, memory: bool) -> None:
    store = SqlStore("sqlite://" if memory else f"sqlite:///{path}", busy_timeout_seconds=0.2)
    caught: list[BaseException] = []

    def write() -> None:
        try:
            add_volume(store)
        except errors.StoreBusy as error:
            caught.append(error)

    with store.writing():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(timeout=30)
    assert len(caught) == 1
    add_volume(store)
    store.close()


USE_IN_FORK = """
import os, sys
from volmig import errors
from volmig.store.sql import SqlStore
store = SqlStore(f"sqlite:///{sys.argv[1]}")
child = os.fork()
if child == 0:
    try:
        with store.reading():
            os._exit(1)
    except errors.InternalError:
        os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_fork_cannot_use_the_store_of_its_parent(path: Path) -> None:
    run(USE_IN_FORK, path)
