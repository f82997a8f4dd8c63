"""Small runs, with real programs and real files."""

from __future__ import annotations

import sys

import pytest

from benchmarks.transfer import programs
from benchmarks.transfer.measure import Bench
from benchmarks.transfer.peers import DD, OURS, Ours, Peer
from benchmarks.transfer.programs import RunFailed, run_all
from benchmarks.transfer.shapes import MIB, MIN_BYTES, SHAPES
from benchmarks.transfer.stop import Stopped
from benchmarks.transfer.worker import Worker

from .fabricated import results

_SCATTERED = next(shape for shape in SHAPES if shape.name == "scattered")


def _go_on():
    """Never give up."""


def _python(program):
    return (sys.executable, "-S", "-E", "-c", program)


def test_usage_is_that_of_the_child_and_not_of_this_process():
    ballast = b"x" * (200 * MIB)
    hungry = (
        "import time; a = b'x' * (64 << 20); end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    )
    usage = run_all([_python(hungry), _python("")], check=_go_on, timeout_seconds=30)
    assert 64 * MIB < usage.peak_bytes < 120 * MIB < len(ballast)
    assert 0.2 <= usage.cpu_seconds < usage.wall_seconds + 1


def test_an_error_is_told_with_its_last_words():
    with pytest.raises(RunFailed, match="ended with 3: too bad"):
        run_all(
            [_python("import sys; print('too bad', file=sys.stderr); sys.exit(3)")], check=_go_on, timeout_seconds=30
        )


def test_what_takes_too_long_is_killed():
    with pytest.raises(RunFailed, match="took too long"):
        run_all([("sleep", "60")], check=_go_on, timeout_seconds=0.1)


def test_a_stop_kills_the_program(monkeypatch):
    started = []
    real = programs.subprocess.Popen
    monkeypatch.setattr(programs.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        run_all([("sleep", "60")], check=stop, timeout_seconds=30)
    assert started[0].returncode == -9


@pytest.fixture
def bench(tmp_path):
    made = results({})
    made.runs.clear()
    with Bench(
        tmp_path,
        made,
        check=_go_on,
        say=lambda _: None,
        timeout_seconds=60,
        clones=False,
        cool=lambda _: None,
    ) as running:
        running.made = made
        yield running


def _peer(name, program):
    return Peer(
        name=name,
        title=name,
        programs=("dd",),
        commands=lambda pair: (_python(program.format(source=pair.source, destination=pair.destination)),),
    )


def test_runs_are_measured_checked_and_leave_nothing(bench, tmp_path):
    right = "import shutil; shutil.copyfile({source!r}, {destination!r})"
    wrong = "open({destination!r}, 'r+b').write(b'no')"
    field = [_peer(DD, right), _peer("cp", wrong), Ours(name=OURS, title="volmig", verify="digest")]
    bench.run(_SCATTERED, MIN_BYTES, {"file": field}, 2, check_all=True)
    found = [(run.round_number, run.entrant, run.error, run.is_checked) for run in bench.made.runs]
    lost = "the destination does not hold what the source holds"
    assert found == [
        (0, DD, "", True),
        (0, "cp", lost, False),
        (0, OURS, "", True),
        (1, "cp", lost, False),
        (1, OURS, "", True),
        (1, DD, "", True),
    ]
    ours = bench.made.runs[2]
    assert ours.means.startswith("chunked")
    assert ours.allocated_bytes < MIN_BYTES // 2 < bench.made.runs[0].allocated_bytes
    assert min(ours.wall_seconds, ours.cpu_seconds, ours.peak_bytes) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_worker_tells_why_a_copy_fails_and_goes_on(tmp_path):
    (source := tmp_path / "source").write_bytes(b"x" * 8192)
    (destination := tmp_path / "destination").write_bytes(bytes(4096))
    request = {
        "source": str(source),
        "destination": str(destination),
        "size_bytes": 8192,
        "verify": "none",
        "destination_is_zero": False,
    }
    worker = Worker()
    try:
        with pytest.raises(RunFailed):
            worker.copy(request, check=_go_on, timeout_seconds=60)
        destination.write_bytes(bytes(8192))
        worker.copy(request, check=_go_on, timeout_seconds=60)
    finally:
        worker.close()
    assert destination.read_bytes() == source.read_bytes()
