"""The examples are run as their readers would run them."""

from __future__ import annotations

import os
import subprocess
import sys

from test_with_memory_store import test_a_full_destination_leaves_the_volume_where_it_was

from .places import EXAMPLES

__all__ = ["test_a_full_destination_leaves_the_volume_where_it_was"]


def _run(name, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_embed(tmp_path):
    run = _run("embed.py", tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert "disk is in here@fast#fast at" in run.stdout
    assert "done verify" in run.stdout
    assert "migration-cancelled - The volume is at its source, unchanged" in run.stdout
    assert run.stdout.endswith("disk is still in here@fast#fast\n")
    (moved,) = (tmp_path / "fast").glob("volume-*")
    assert moved.read_bytes() == bytes(range(256)) * 4096 * 8
    assert not (tmp_path / "slow" / "disk.img").exists()


def test_going_back(tmp_path):
    run = _run("going_back.py", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert "changes-would-be-lost - " in run.stdout
    assert run.stdout.endswith("disk is back in here@slow#slow\n")
    [given_up] = (tmp_path / "fast").glob("volume-*")
    assert given_up.read_bytes().startswith(b"written since")
    [back] = [path for path in (tmp_path / "slow").iterdir() if path.stat().st_size == 256 * 4096]
    assert back.read_bytes() == bytes(range(256)) * 4096


def test_transfer_alone(tmp_path):
    source, destination = tmp_path / "source", tmp_path / "destination"
    data = os.urandom(300_000) + bytes(500_000) + b"end"
    source.write_bytes(data)
    destination.write_bytes(b"\xff" * (len(data) + 10))
    run = _run("transfer_alone.py", source, destination)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("chunked: ")
    assert destination.read_bytes() == data + b"\xff" * 10


def test_transfer_alone_says_why_it_fails(tmp_path):
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(b"x" * 1000)
    destination.write_bytes(b"y" * 999)
    run = _run("transfer_alone.py", source, destination)
    assert run.returncode == 1
    assert "999 bytes, and 1000 are to be copied" in run.stderr
    assert destination.read_bytes() == b"y" * 999
