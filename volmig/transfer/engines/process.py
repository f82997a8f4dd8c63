"""Programs that an engine runs: started in a group of their own, steered by signals, never left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from volmig import errors
from volmig.transfer.base import HelperProcess

LOG = logging.getLogger(__name__)

_GRACE_SECONDS = 0.4
_KILL_SECONDS = 0.4
_SHOWN_BYTES = 4096

_GATE = """
import os, sys
if not os.read(0, 1):
    os._exit(125)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Waits for one byte and then becomes the program; ends instead when the byte can no longer come."""


class TrackedProcess:
    """A running program, in its own session and process group, without a terminal or input.

    It begins its work only at :meth:`begin`, so that it can be recorded before; if this process dies earlier, it never
    does. Leaving the ``with`` block ends it if it still runs, and reaps it.

    :param arguments: program and arguments; no shell is involved.
    :param descriptors: open files that it inherits, each under its own number.
    :param keeps_output: keep its standard output for :meth:`output`, instead of dropping it.
    :raises volmig.errors.ProgramMissing: naming *package* as the Debian package that has the program.
    """

    def __init__(
        self, arguments: Sequence[str], *, package: str, descriptors: Sequence[int] = (), keeps_output: bool = False
    ) -> None:
        self.program = arguments[0]
        if shutil.which(self.program) is None:
            raise errors.ProgramMissing(program=self.program, package=package)
        interpreter = _interpreter()
        self._held = False
        self._stderr = os.memfd_create(f"{self.program}-stderr", os.MFD_CLOEXEC)
        self._stdout: int | None = None
        try:
            if keeps_output:
                self._stdout = os.memfd_create(f"{self.program}-stdout", os.MFD_CLOEXEC)
            self._popen = subprocess.Popen(
                [interpreter, "-I", "-S", "-c", _GATE, *arguments],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if self._stdout is None else self._stdout,
                stderr=self._stderr,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
                pass_fds=tuple(descriptors),
            )
        except BaseException:
            self._close_files()
            raise
        try:
            self.helper = HelperProcess(
                pid=self._popen.pid, start_time_ticks=start_time_ticks(self._popen.pid), program=self.program
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def begin(self) -> None:
        """Let the program begin. Succeeds when it has ended already."""
        gate = self._popen.stdin
        if gate is not None and not gate.closed:
            with contextlib.suppress(BrokenPipeError):
                gate.write(b"\n")
            gate.close()

    def wait(self, timeout_seconds: float) -> int | None:
        """Return the exit status (negative: the signal that ended it); None when it still runs after the time."""
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def hold(self) -> None:
        """Stop the program until :meth:`go_on`. Succeeds when it is held already, or has ended."""
        if not self._held:
            self._held = True
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a held program run. Succeeds when it was not held, or has ended."""
        if self._held:
            self._held = False
            self._signal(signal.SIGCONT)

    def position(self, fd: int) -> int | None:
        """Return the position of one of the program's open files; None when it cannot be told."""
        try:
            text = Path(f"/proc/{self._popen.pid}/fdinfo/{fd}").read_text(encoding="ascii")
        except OSError:
            return None
        for line in text.splitlines():
            label, _, value = line.partition(":")
            if label == "pos" and value.strip().isdigit():
                return int(value)
        return None

    def moved_bytes(self) -> int:
        """Return how much the program has read, or written if that is more; 0 when the system does not count it.

        What goes over sockets by their own system calls is not in it.
        """
        try:
            text = Path(f"/proc/{self._popen.pid}/io").read_text(encoding="ascii")
        except OSError:
            return 0
        counts = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        return max(int(counts.get("rchar", 0)), int(counts.get("wchar", 0)))

    def stderr(self) -> str:
        """Return the end of what the program wrote to its standard error, 4 KiB at most."""
        return _end_of(self._stderr)

    def output(self) -> str:
        """Return the end of what the program wrote to its standard output, 4 KiB at most; empty unless it is kept."""
        return "" if self._stdout is None else _end_of(self._stdout)

    def close(self) -> None:
        """End the program if it runs: SIGTERM to its group, SIGKILL after 0.4 s; and reap it.

        :raises volmig.errors.TransferFailed: when it survives SIGKILL for 0.4 s, since it hangs in the kernel. A
            thread waits for its end then.
        """
        try:
            if self._popen.poll() is None:
                self._end()
        finally:
            self._close_files()
            if self._popen.stdin is not None:
                self._popen.stdin.close()

    def _close_files(self) -> None:
        os.close(self._stderr)
        if self._stdout is not None:
            os.close(self._stdout)

    def _end(self) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        if self.wait(_GRACE_SECONDS) is None:
            self.kill()

    def kill(self) -> None:
        """End the program at once: SIGSTOP to its group, then SIGKILL; and reap it. Succeeds when it has ended.

        :raises volmig.errors.TransferFailed: as :meth:`close` does.
        """
        self._signal(signal.SIGSTOP)
        self._signal(signal.SIGKILL)
        if self.wait(_KILL_SECONDS) is not None:
            return
        pid = self._popen.pid
        LOG.error("%s does not end after SIGKILL", self.program, extra={"pid": pid})
        threading.Thread(target=self._popen.wait, name=f"reap-{pid}", daemon=True).start()
        raise errors.TransferFailed(
            path=self.program,
            offset=0,
            reason=f"process {pid} hangs in the kernel and cannot be ended",
            hint=f"The storage does not answer. Do not use the destination before process {pid} has ended.",
        )

    def _signal(self, number: signal.Signals) -> None:
        # Until it is reaped the process id, which is the group's, belongs to nobody else.
        if self._popen.returncode is None:
            try:
                os.killpg(self._popen.pid, number)
            except ProcessLookupError:
                LOG.debug("%s has ended already", self.program, extra={"pid": self._popen.pid})


def _interpreter() -> str:
    """Return a Python interpreter; the program that embeds this one, if any, is none."""
    if Path(sys.executable or "").name.startswith(("python", "pypy")):
        return sys.executable
    found = shutil.which("python3")
    if found is None:
        raise errors.ProgramMissing(program="python3", package="python3")
    return found


def _end_of(fd: int) -> str:
    """Return the last 4 KiB of a file as text."""
    data = os.pread(fd, _SHOWN_BYTES, max(0, os.fstat(fd).st_size - _SHOWN_BYTES))
    return data.decode(errors="replace")


def start_time_ticks(pid: int) -> int:
    """Return the start time of a process as in ``/proc/<pid>/stat``, field 22.

    :raises OSError: when there is no such process.
    """
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The program's name, in parentheses, may hold anything.
    return int(text.rpartition(")")[2].split()[19])
