"""Programs that a dead worker may have left running."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from volmig import errors
from volmig.manager.processes import boot_id, is_running
from volmig.model import EntryKind, JournalEntry
from volmig.transfer import HelperProcess

LOG = logging.getLogger(__name__)

HELPER_NOTE = "helper-process"
"""Subject of the journal entry that names a program which an engine started."""

_PATIENCE_SECONDS = 5.0


def helper_facts(process: HelperProcess, *, host: str) -> dict[str, Any]:
    """Return what the journal says of a program, enough to find it again, and no other, after a crash."""
    return {"host": host, "boot": boot_id(), **asdict(process)}


def stop_helpers(entries: Iterable[JournalEntry], *, host: str) -> None:
    """Stop all programs of this host that the journal names and that still run, and wait until they are gone.

    A program that outlived its worker would go on writing to a destination that is about to be written or deleted.

    :raises volmig.errors.InternalError: when one does not go.
    """
    for entry in entries:
        if entry.kind is not EntryKind.NOTE or entry.subject != HELPER_NOTE:
            continue
        if (entry.data["host"], entry.data["boot"]) == (host, boot_id()):
            _stop(int(entry.data["pid"]), int(entry.data["start_time_ticks"]), str(entry.data["program"]))


def _stop(pid: int, start_time_ticks: int, program: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while is_running(pid, start_time_ticks):
        LOG.warning("stopping %s (process %d), which outlived its worker", program, pid)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        if time.monotonic() > deadline:
            raise errors.InternalError(reason=f"{program} (process {pid}) of a dead worker cannot be stopped")
        time.sleep(0.02)
