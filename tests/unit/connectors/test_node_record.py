"""The CHAP secret goes into open-iscsi's record, and on no command line."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from volmig.connectors.brick import Runner
from volmig.connectors.node_record import put_secret

IQN = "iqn.2026-11.org.volmig:volume-1.aa"
SECRET = "0123456789abcdef"  # noqa: S105
RECORD = f"""# BEGIN RECORD 2.1.8
node.name = {IQN}
node.session.auth.authmethod = CHAP
node.session.auth.password = old
node.startup = automatic
# END RECORD
"""


@pytest.mark.parametrize("place", ["127.0.0.1,3260", "127.0.0.1,3260/default", "127.0.0.1,3260,1/default"])
def test_the_secret_replaces_the_old_one_and_the_rest_stays(tmp_path: Path, place: str) -> None:
    record = tmp_path / IQN / place
    other = tmp_path / IQN / "127.0.0.1,32600,1" / "default"
    for path in (record, other):
        path.parent.mkdir(parents=True)
        path.write_text(RECORD)
    assert put_secret(IQN, "127.0.0.1:3260", SECRET, directories=(tmp_path,)) == 1
    lines = record.read_text().splitlines()
    assert f"node.session.auth.password = {SECRET}" in lines
    assert "old" not in record.read_text()
    assert (lines[0], lines[-1]) == ("# BEGIN RECORD 2.1.8", "# END RECORD")
    assert set(RECORD.splitlines()) - set(lines) == {"node.session.auth.password = old"}
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert other.read_text() == RECORD
    assert [path.name for path in record.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("iqn", "secret"), [("../../etc", SECRET), (IQN, "a\nnode.startup = automatic"), (IQN, "")])
def test_what_cannot_be_in_a_record_is_refused(tmp_path: Path, iqn: str, secret: str) -> None:
    with pytest.raises(ValueError, match=r"is no qualified name|cannot hold"):
        put_secret(iqn, "127.0.0.1:3260", secret, directories=(tmp_path,))


def test_an_address_of_six_bytes_groups_is_found(tmp_path: Path) -> None:
    record = tmp_path / IQN / "fe80::1,3260,1"
    record.parent.mkdir()
    record.write_text(RECORD)
    assert put_secret(IQN, "[fe80::1]:3260", SECRET, directories=(tmp_path,)) == 1


def test_the_program_says_that_there_is_no_record() -> None:
    request = json.dumps({"iqn": "iqn.2026-11.org.volmig:absent", "portal": "192.0.2.1:3260", "secret": SECRET})
    command = [sys.executable, "-I", "-m", "volmig.connectors.node_record"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no record" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_the_secret_is_on_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Execution:
        ProcessExecutionError = OSError

        @staticmethod
        def execute(*words: str, **keywords: object) -> tuple[str, str]:
            seen.append((words, keywords))
            return "", ""

    monkeypatch.setitem(sys.modules, "oslo_concurrency.processutils", Execution)  # type: ignore[arg-type]
    update = ("--op", "update", "-n", "node.session.auth.password", "-v", SECRET)
    Runner()("iscsiadm", "-m", "node", "-T", IQN, "-p", "192.0.2.1:3260", *update, run_as_root=True)
    ((words, keywords),) = seen
    assert SECRET not in " ".join(words)
    assert json.loads(str(keywords["process_input"])) == {"iqn": IQN, "portal": "192.0.2.1:3260", "secret": SECRET}
    assert keywords["run_as_root"] is True
