"""Programs that a dead worker has left running are stopped, and no others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volmig.migration.helpers import HELPER_NOTE, helper_facts, stop_helpers
from volmig.model import EntryKind, JournalEntry
from volmig.transfer import HelperProcess


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def entry(process: subprocess.Popen[bytes], **changes: Any) -> JournalEntry:
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    helper = HelperProcess(pid=process.pid, start_time_ticks=int(stat[19]), program="sleep")
    data = {**helper_facts(helper, host="here"), **changes}
    return JournalEntry(migration_id="m", kind=EntryKind.NOTE, subject=HELPER_NOTE, actor="dead", data=data)


def test_it_is_stopped_and_gone(program: subprocess.Popen[bytes]) -> None:
    stop_helpers([entry(program)], host="here")
    assert program.wait(5) == -9
    stop_helpers([entry_of_gone(program)], host="here")


def entry_of_gone(process: subprocess.Popen[bytes]) -> JournalEntry:
    helper = HelperProcess(pid=process.pid, start_time_ticks=1, program="sleep")
    data = helper_facts(helper, host="here")
    return JournalEntry(migration_id="m", kind=EntryKind.NOTE, subject=HELPER_NOTE, actor="dead", data=data)


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot": "another"}, {"start_time_ticks": 1}], ids=str)
def test_what_only_has_its_number_is_let_be(program: subprocess.Popen[bytes], changes: dict[str, Any]) -> None:
    stop_helpers([entry(program, **changes)], host="here")
    assert program.poll() is None
