"""Starting the worker process that runs a queued migration after the command has returned."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volmig import errors
from volmig.model import Phase

if TYPE_CHECKING:
    from volmig.engine import Engine
    from volmig.model import Migration

CLAIM_TIMEOUT_SECONDS = 20.0
"""How long the command watches over a new worker; it only reports what it saw, and the worker goes on."""
_LOOK_SECONDS = 0.05


def worker_arguments(config_files: Sequence[str] | None, migration_id: str) -> list[str]:
    """Return the worker's argument list."""
    # -P: a module in the working directory must not stand in for one of volmig's.
    arguments = [sys.executable, "-P", "-m", "volmig.cmd.worker"]
    for path in config_files or ():
        arguments += ["--config-file", path]
    return [*arguments, "--", migration_id]


def log_path(state_path: str, migration_id: str) -> Path:
    """Return the file that takes a worker's log."""
    return Path(state_path) / "log" / f"migration-{migration_id}.log"


def start_worker(arguments: Sequence[str], migration_id: str, log: Path) -> int:
    """Start a worker in a session of its own, apart from the terminal, and return its process id.

    The working directory stays, since paths in the configuration may be relative to it.

    :raises volmig.errors.WorkerFailed: when it cannot be started.
    """
    try:
        return _spawn(arguments, log)
    except OSError as error:
        raise errors.WorkerFailed(migration=migration_id, reason=error, log=log) from error


def _spawn(arguments: Sequence[str], log: Path) -> int:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.posix_spawn(
        arguments[0],
        list(arguments),
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def await_claim(
    engine: Engine, queued: Migration, pid: int, log: Path, *, timeout_seconds: float = CLAIM_TIMEOUT_SECONDS
) -> Migration:
    """Return a migration as soon as a worker has taken it, or somebody has paused it, or as it is after the timeout.

    :param queued: the migration before the worker was started.
    :raises volmig.errors.WorkerFailed: when the worker ended without having taken it.
    """
    give_up_at = time.monotonic() + timeout_seconds
    while True:
        # In this order: a worker that has taken it and ended since must not count as failed.
        ended, status = os.waitpid(pid, os.WNOHANG)
        migration = engine.show_migration(queued.id)
        if migration.epoch > queued.epoch or migration.phase.is_final or migration.phase is Phase.PAUSED:
            return migration
        if ended:
            raise errors.WorkerFailed(
                migration=queued.id,
                reason=f"it ended with status {os.waitstatus_to_exitcode(status)}: {_last_line(log)}",
                log=log,
            )
        if time.monotonic() >= give_up_at:
            return migration
        time.sleep(_LOOK_SECONDS)


def _last_line(log: Path) -> str:
    try:
        said = [line for line in log.read_text(errors="replace").splitlines() if line and not line.startswith("hint:")]
    except OSError as error:
        return f"its log cannot be read: {error}"
    return said[-1] if said else "it left no message"
