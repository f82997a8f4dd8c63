"""volmig in a process that is warm: everything is imported, and copies are asked for over a pipe.

As a program it reads one request a line (JSON) from standard input and answers each with a line. :class:`Worker` is the
side that asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.transfer.programs import RunFailed, Usage, peak_bytes

_LOOK_MS = 50
_END_SECONDS = 10


class Worker:
    """A warm process for copies."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.transfer.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                process_group=0,
                cwd=Path(__file__).parents[2],
            )
        except BaseException:
            self._said.close()
            raise

    def copy(self, request: Mapping[str, Any], *, check: Callable[[], None], timeout_seconds: float) -> Usage:
        """Have one copy made, and return what it took: from the asking to the answer.

        :raises RunFailed: when the copy fails or the process ends; it cannot be used any more after the latter.
        """
        stdin = self._process.stdin
        assert stdin is not None
        line = json.dumps(request).encode() + b"\n"
        began = time.monotonic()
        try:
            stdin.write(line)
            stdin.flush()
        except BrokenPipeError:
            raise RunFailed(self._last_words()) from None
        try:
            answer = self._answer(check, began + timeout_seconds)
        except BaseException:
            self._kill()  # an answer that comes later must not be taken for that of the next request
            raise
        wall_seconds = time.monotonic() - began
        if "error" in answer:
            raise RunFailed(answer["error"])
        return Usage(wall_seconds=wall_seconds, **answer)

    def close(self) -> None:
        """End the process, by force when it does not go by itself."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._said.close)
            if self._process.stdout is not None:
                stack.callback(self._process.stdout.close)
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answer(self, check: Callable[[], None], deadline: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        poller = select.poll()
        poller.register(stdout, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if poller.poll(_LOOK_MS):
                more = os.read(stdout.fileno(), 65536)
                if not more:
                    raise RunFailed(self._last_words())
                line += more
                continue
            check()
            if time.monotonic() > deadline:
                raise RunFailed("volmig took too long")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._process.wait(_END_SECONDS)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f"the worker ended with {self._process.returncode}: {lines[-1] if lines else 'no word'}"


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def serve() -> None:
    """Answer requests until standard input ends."""
    from volmig import errors, transfer

    for line in sys.stdin:
        request = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5\n")  # sets the high-water mark back (proc_pid_clear_refs(5))
        before = _cpu_seconds()
        answer: dict[str, Any]
        try:
            result = transfer.copy(
                request["source"],
                request["destination"],
                size_bytes=request["size_bytes"],
                options=transfer.CopyOptions(
                    verify=transfer.Verify(request["verify"]), destination_is_zero=request["destination_is_zero"]
                ),
            )
        except (errors.VolmigError, OSError) as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        else:
            cpu_seconds = _cpu_seconds() - before
            means = ", ".join(filter(None, [result.engine, getattr(result, "means", "")]))
            answer = {"cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes("self"), "means": means}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
