"""A virtual machine with the host's own files, in which commands run as root beside a real device mapper."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, Self

from volmig.testing.vm import guest
from volmig.testing.vm.errors import (
    BedError,
    BedIncomplete,
    BootFailed,
    CommandTimedOut,
    MachineEnded,
    MachinePanicked,
    MachinePoweredOff,
)
from volmig.testing.vm.kernel import Kernel, KernelCache, default_cache
from volmig.testing.vm.launch import launch_command
from volmig.testing.vm.marks import Mark, MarkReader
from volmig.testing.vm.packages import prepare, virtme_run

#: Loaded before the first command; a command may load others with modprobe.
DEFAULT_MODULES = (
    "dm_mod",
    "dm_thin_pool",
    "dm_mirror",
    "dm_snapshot",
    "dm_raid",
    "dm_flakey",
    "dm_delay",
    "loop",
)
_SHOW_SECONDS = 20.0
_SHUTDOWN_SECONDS = 30.0
_EVIDENCE_BYTES = 3000


class Output(Protocol):
    """Where bytes go as they come: a binary file, such as ``sys.stdout.buffer``."""

    def write(self, data: bytes, /) -> object:
        """Take ``data``."""

    def flush(self) -> object:
        """Show what was taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """How a machine is made.

    :ivar memory: as QEMU's ``-m`` takes it. Files that the guest writes to its root, and again those in ``/dev/shm``,
        take at most half of it.
    :ivar disks: files that the guest sees as ``/dev/disk/by-id/virtio-volmig-0``, ``…-1``, and so on. What the guest
        wrote to them stays, whatever becomes of the machine.
    :ivar results: a directory of the host that gets the logs and what commands left in ``$VOLMIG_VM_RESULTS``.
    :ivar cache: where kernels are kept; by default :func:`volmig.testing.vm.kernel.default_cache`.
    :ivar accelerator: ``tcg`` emulates and works everywhere; ``kvm`` is quick where ``/dev/kvm`` boots guests.
    """

    memory: str = "2G"
    cpus: int = 2
    disks: tuple[Path, ...] = ()
    modules: tuple[str, ...] = DEFAULT_MODULES
    results: Path | None = None
    cache: Path | None = None
    accelerator: str = "tcg"
    boot_timeout_seconds: float = 420.0


class GuestCommand:
    """A command that was started in the guest."""

    def __init__(self, machine: VirtualMachine, number: int, text: str) -> None:
        self._machine = machine
        self._number = number
        self.text = text

    def wait(self, timeout_seconds: float) -> int:
        """Return the exit status, 128 and the signal's number if a signal ended it.

        :raises CommandTimedOut: it did not end in time. The machine is switched off then, and the logs have
            what its processes were doing.
        :raises MachinePanicked: the guest's kernel panicked; :raises MachinePoweredOff: it was switched off;
        :raises MachineEnded: it ended otherwise.
        """
        return self._machine.wait_for(self._number, self.text, timeout_seconds)


class VirtualMachine:
    """A machine, from its start to its end; a context manager that leaves no process and no temporary file.

    Its root file system is the host's, as it was found when a file was first read, under a layer that takes all
    writes and is thrown away. Only :attr:`MachineOptions.disks` and the results outlive it.
    """

    def __init__(
        self,
        options: MachineOptions | None = None,
        *,
        output: Output | None = None,
        kernel: Callable[[], Kernel] | None = None,
        launcher: Callable[[], Sequence[str]] = virtme_run,
    ) -> None:
        self.options = options or MachineOptions()
        self._output = output
        self._find_kernel = kernel or KernelCache(self.options.cache or default_cache()).kernel
        self._launcher = launcher
        self._token = secrets.token_hex(16)
        self._numbers = itertools.count(1)
        self._news = threading.Condition()
        self._killing = threading.Lock()
        self._output_failure: Exception | None = None
        self._marks: dict[str, str] = {}
        self._has_ended = False
        self._was_switched_off = False
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []
        self._exchange: Path | None = None
        self.boot_seconds = 0.0

    # --- life -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(orderly=kind is None)

    def start(self) -> None:
        """Boot, and return when the machine takes commands.

        :raises BedIncomplete: something that the machine needs is not there.
        :raises BootFailed: it ended before it was ready, or was not ready in time.
        """
        if self._process is not None:
            raise BedError("This machine was started before.", hint="Make another one.")
        began = time.monotonic()
        try:
            self._launch()
            self._wait_until_ready(began + self.options.boot_timeout_seconds)
        except BaseException:
            self.close(orderly=False)
            raise
        self.boot_seconds = time.monotonic() - began

    def power_off(self) -> None:
        """Cut the power: nothing in the guest is told. What it had not sent to its disks yet is lost."""
        self._was_switched_off = True
        process = self._process
        if process is not None:
            with self._killing:
                # Reaped nowhere else, so that the number still is this group's.
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        for reader in self._readers:
            reader.join()

    def close(self, *, orderly: bool = True) -> None:
        """End the machine, with its caches written to its disks if ``orderly``; hand over the results."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            if orderly:
                self._wait_for_marks(set(), time.monotonic() + _SHUTDOWN_SECONDS)
        self.power_off()
        self._hand_over()

    @property
    def is_running(self) -> bool:
        """Whether the machine is there."""
        return self._process is not None and not self._has_ended

    # --- commands ---------------------------------------------------------------------------

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_seconds: float,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> int:
        """Run ``command`` to its end and return its exit status; for the errors see :meth:`GuestCommand.wait`."""
        return self.launch(command, environment=environment, directory=directory).wait(timeout_seconds)

    def launch(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> GuestCommand:
        """Start ``command`` as root in ``directory`` (by default this process's), and return at once.

        It finds the virtual environment of this process first in its PATH. Of this process's environment it gets
        only what ``environment`` names. Its output goes to the machine's, as it comes.
        """
        process, exchange = self._process, self._exchange
        if process is None or process.stdin is None or exchange is None:
            raise BedError("The machine is not running.", hint="Start it first.")
        number = next(self._numbers)
        script = guest.command_script(
            command,
            directory=PurePosixPath(directory or Path.cwd()),
            environment=guest.environment_of(PurePosixPath(sys.prefix), environment or {}),
        )
        (exchange / "commands" / f"{number}.sh").write_text(script, encoding="utf-8", errors="surrogateescape")
        self._ask(f"run {number}")
        return GuestCommand(self, number, " ".join(command))

    def wait_for(self, number: int, text: str, timeout_seconds: float) -> int:
        """Return the exit status of command ``number``; for :meth:`GuestCommand.wait`."""
        name = f"end-{number}"
        said = self._wait_for_marks({name}, time.monotonic() + timeout_seconds)
        if self._output_failure is not None:
            raise BedError(f"The output of {text!r} could not be passed on.") from self._output_failure
        if said is not None:
            return int(said[1])
        if self._has_ended:
            raise self._how_it_ended(text)
        self._ask(f"show {number}")
        self._wait_for_marks({"shown"}, time.monotonic() + _SHOW_SECONDS)
        self.power_off()
        raise CommandTimedOut(
            f"{text!r} did not end in {timeout_seconds:.0f} seconds; the machine was switched off.",
            hint="processes.log and dmesg.log among the results tell what it was doing. Give more time by --timeout.",
            evidence=self._tail("output.log"),
        )

    # --- within -----------------------------------------------------------------------------

    def _launch(self) -> None:
        kernel = self._find_kernel()
        self._exchange = Path(tempfile.mkdtemp(prefix="volmig-vm-"))
        for name in ("guest", "commands", "results", "temporary"):
            (self._exchange / name).mkdir()
        (self._exchange / "guest" / "boot.sh").write_text(
            guest.boot_script(token=self._token, modules_directory=PurePosixPath(kernel.modules))
        )
        (self._exchange / "guest" / "agent.sh").write_text(
            guest.agent_script(token=self._token, modules=self.options.modules)
        )
        command = launch_command(self._launcher(), kernel=kernel, exchange=self._exchange, options=self.options)
        path = os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        try:
            process = subprocess.Popen(
                command,
                cwd="/",
                # What virtme-run leaves behind when it is killed goes with the rest.
                env={**os.environ, "PATH": path, "TMPDIR": str(self._exchange / "temporary")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Its own group: it is a tree of processes, and a Ctrl-C is for us to act on.
                start_new_session=True,
            )
        except OSError as error:
            raise BedIncomplete(f"{command[0]} cannot be started: {error}") from error
        self._process = process
        if process.stdout is None or process.stderr is None:
            raise BedError("The machine has no output.")
        for read, stream in ((self._read_output, process.stdout), (self._read_console, process.stderr)):
            reader = threading.Thread(target=read, args=(stream,), name=f"vm-{read.__name__}")
            reader.start()
            self._readers.append(reader)

    def _wait_until_ready(self, deadline: float) -> None:
        said = self._wait_for_marks({"ready", "failed"}, deadline)
        if said is not None and said[0] == "ready":
            return
        if said is not None:
            reason = f"The machine booted, but could not {said[1]}."
        elif self._has_ended:
            reason = "The machine ended before it was ready."
        else:
            reason = f"The machine was not ready after {self.options.boot_timeout_seconds:.0f} seconds."
        self.power_off()
        raise BootFailed(reason, evidence=self._tail("console.log"))

    def _ask(self, line: str) -> None:
        """Send a line to the agent; a machine that has gone is noticed by who waits for the answer."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{line}\n".encode())
                process.stdin.flush()

    def _wait_for_marks(self, names: set[str], deadline: float) -> tuple[str, str] | None:
        """Return the first of these marks; None at the deadline, or when the machine has ended without it."""
        with self._news:
            while True:
                for name in names & self._marks.keys():
                    return name, self._marks[name]
                left = deadline - time.monotonic()
                if self._has_ended or left <= 0:
                    return None
                self._news.wait(left)

    def _read_output(self, stream: IO[bytes]) -> None:
        reader = MarkReader(self._token)
        with stream, self._log("output.log") as log:
            try:
                for data in _chunks(stream):
                    for piece in reader.feed(data):
                        if isinstance(piece, Mark):
                            self._note(piece)
                        else:
                            self._pass_on(piece, log)
                self._pass_on(reader.finish(), log)
            finally:
                with self._news:
                    self._has_ended = True
                    self._news.notify_all()

    def _read_console(self, stream: IO[bytes]) -> None:
        with stream, self._log("console.log") as log:
            for data in _chunks(stream):
                log.write(data)

    def _note(self, mark: Mark) -> None:
        with self._news:
            self._marks[mark.name] = mark.value
            self._news.notify_all()

    def _pass_on(self, data: bytes, log: IO[bytes]) -> None:
        log.write(data)
        if self._output is not None and self._output_failure is None:
            try:
                self._output.write(data)
                self._output.flush()
            except (OSError, ValueError) as error:
                # The machine goes on, and its log is whole; who waits for the command is told.
                self._output_failure = error

    def _log(self, name: str) -> IO[bytes]:
        return (self._logs() / name).open("wb", buffering=0)

    def _logs(self) -> Path:
        if self._exchange is None:
            raise BedError("The machine was not started.")
        return self._exchange / "results"

    def _tail(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self._logs() / name).read_bytes()[-_EVIDENCE_BYTES:].decode("utf-8", "replace").strip()
        return ""

    def _how_it_ended(self, text: str) -> MachineEnded:
        """Judge by the kernel's last words, after the process that showed them has ended."""
        for reader in self._readers:
            reader.join(_SHUTDOWN_SECONDS)
        console = self._tail("console.log")
        where = f"while {text!r} ran, which has no exit status"
        if self._was_switched_off:
            return MachinePoweredOff(f"The machine was switched off {where}.")
        if "Kernel panic" in console:
            return MachinePanicked(f"The machine's kernel panicked {where}.", evidence=console)
        if "reboot: Power down" in console:
            return MachinePoweredOff(f"The machine switched itself off {where}.", evidence=console)
        return MachineEnded(f"The machine ended {where}.", evidence=console)

    def _hand_over(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        try:
            if self.options.results is not None:
                shutil.copytree(exchange / "results", self.options.results, symlinks=True, dirs_exist_ok=True)
        finally:
            shutil.rmtree(exchange)


def boot(options: MachineOptions | None = None, *, output: Output | None = None) -> VirtualMachine:
    """Install what is missing (as root) and return a machine that takes commands; use it in a ``with`` statement.

    :raises BedError: it cannot be had, with what to do.
    """
    prepare()
    machine = VirtualMachine(options, output=output)
    machine.start()
    return machine


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    descriptor = stream.fileno()
    while data := os.read(descriptor, 65536):
        yield data
