"""A file system that fills up in the middle of a copy: a real one of 24 MiB, in a mount namespace of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MIB = 1024 * 1024

INSIDE = """
import hashlib, json, sqlite3, subprocess, sys
from pathlib import Path

root = Path(sys.argv[1])
mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0777", "small", str(root / "small")]
subprocess.run(mount, check=True)

def volmig(*arguments):
    command = [sys.executable, "-m", "volmig.cli", "--config-file", str(root / "volmig.conf"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)

source = root / "large" / "disk.img"
before = hashlib.sha256(source.read_bytes()).hexdigest()
managed = volmig("volume", "manage", str(source), "--name", "disk")
assert managed.returncode == 0, managed.stderr
moved = volmig("volume", "migrate", "disk", "here@small#small", "--wait", *sys.argv[2:])
shown = volmig("volume", "show", "disk", "-f", "json")
assert shown.returncode == 0, shown.stderr
with sqlite3.connect(root / "state" / "volmig.db") as database:
    (reservations,) = database.execute("SELECT count(*) FROM reservations").fetchone()
print(json.dumps({
    "status": moved.returncode,
    "stderr": moved.stderr,
    "volume": json.loads(shown.stdout),
    "reservations": reservations,
    "same": hashlib.sha256(source.read_bytes()).hexdigest() == before,
    "left": sorted(path.name for path in (root / "small").iterdir() if not path.name.startswith(".volmig")),
}))
"""


def rehearse(root: Path, *arguments: str) -> dict[str, object]:
    for name in ("large", "small"):
        (root / name).mkdir()
    (root / "volmig.conf").write_text(
        "[DEFAULT]\nenabled_backends = large, small\nhost = here\n"
        f"state_path = {root}/state\n"
        f"[large]\nvolume_driver = file\nfile_directory = {root}/large\n"
        # It promises more than it has, as thin pools do: so the copy is begun.
        f"[small]\nvolume_driver = file\nfile_directory = {root}/small\nmax_over_subscription_ratio = 10\n"
    )
    (root / "large" / "disk.img").write_bytes(os.urandom(40 * MIB))
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *user, sys.executable, "-c", INSIDE, str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def assert_source_is_whole(found: dict[str, object]) -> None:
    assert found["status"] == 5, found["stderr"]
    assert "disk-full" in str(found["stderr"])
    assert "hint" in str(found["stderr"])
    assert found["same"] is True
    assert found["left"] == []
    volume = found["volume"]
    assert isinstance(volume, dict)
    assert volume["status"] == "available"
    assert volume["migration_status"] == "error"
    assert volume["host"] == "here@large#large"
    assert found["reservations"] == 0


def test_engine_chunked(tmp_path: Path) -> None:
    assert_source_is_whole(rehearse(tmp_path))


def test_engine_dd(tmp_path: Path) -> None:
    assert_source_is_whole(rehearse(tmp_path, "--engine", "dd"))
