"""A process from which workers are forked, so that a new one is there at once; and what a worker does.

It is run as a module, with the directory of the yard as its argument. For each line on its standard input it forks a
worker and answers with the worker's process id. When the input ends, it kills those that are left.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volmig import Engine, errors
from volmig import conf as configuration
from volmig.migration import manager, recovery
from volmig.migration.move import Move
from volmig.migration.steps import data
from volmig.model import RequestContext
from volmig.transfer import CopiedData, boottime_seconds

LOG = logging.getLogger(__name__)

COPIES = "copies.log"
"""Name of the file in which workers write down when they begin and end to copy to an object."""


def serve(directory: Path) -> None:
    """Fork workers until the input ends."""
    # Loaded before the fork, not after each.
    import volmig.store.sql  # noqa: F401

    children: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        with contextlib.suppress(ChildProcessError):
            while children and (ended := os.waitpid(-1, os.WNOHANG)[0]):
                children.discard(ended)
        if not ready:
            continue
        piece = os.read(0, 65536)
        if not piece:
            break
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            children.add(_fork(directory, json.loads(line)))
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _fork(directory: Path, order: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        os.write(1, f"{child}\n".encode())
        return child
    status = 70
    try:
        log = os.open(directory / order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(fd, number)
        os.closerange(3, 64)
        status = _work(directory, order)
    except BaseException:
        LOG.exception("the worker failed")
    finally:
        os._exit(status)


def _work(directory: Path, order: dict[str, Any]) -> int:
    form = "%(relativeCreated)7d %(levelname)s %(threadName)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.DEBUG if order["debug"] else logging.INFO, format=form, stream=sys.stderr)
    for module in (manager, recovery):
        # Whoever waits for its first worker is not kept waiting here.
        module._GRACE_SECONDS = 0.0
    _watch_copies(directory / COPIES)
    with Engine(
        configuration.load([str(directory / "volmig.conf")]), context=RequestContext(user=order["name"])
    ) as engine:
        return _run(engine, order["migration"]) if order["migration"] else _recover(engine, order["interval"])


def _run(engine: Engine, migration_id: str) -> int:
    """Run one migration and nothing else, and tell why it came to an end here."""
    handle = engine.run_migration(migration_id)
    with contextlib.suppress(errors.VolmigError):
        handle.result()
    # What the handle tells is what became of the migration, whoever has run it in the end.
    error = handle._owned.error if handle._owned else None
    told = f"[{error.code}] {error.message}" if isinstance(error, errors.VolmigError) else str(error)
    sys.stderr.write(f"ended: {told}\n")
    return 0


def _recover(engine: Engine, interval_seconds: float) -> int:
    """Recover until told to end."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    engine.keep_recovering(interval_seconds)
    while not told.wait(0.5):
        """Go on."""
    engine.close()
    sys.stderr.write("ended: as told\n")
    return 0


def _watch_copies(log: Path) -> None:
    original = data._copy

    def copy(move: Move, checkpoint: Any) -> CopiedData:
        with _noted(log, move):
            return original(move, checkpoint)

    data._copy = copy


@contextlib.contextmanager
def _noted(log: Path, move: Move) -> Iterator[None]:
    what = {"object": move.migration.destination_id, "migration": move.migration.id, "epoch": move.migration.epoch}
    note(log, event="begin", **what)
    try:
        yield
    finally:
        note(log, event="end", **what)


def note(log: Path, **facts: Any) -> None:
    """Append a line, whole even when several processes do."""
    line = json.dumps({**facts, "pid": os.getpid(), "at": boottime_seconds()})
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
