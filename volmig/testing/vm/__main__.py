"""``python -m volmig.testing.vm [options] -- COMMAND [ARGUMENT ...]``: run a command in the test bed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from volmig.testing.vm.errors import BedError
from volmig.testing.vm.kernel import KernelCache, default_cache
from volmig.testing.vm.machine import DEFAULT_MODULES, MachineOptions, VirtualMachine
from volmig.testing.vm.packages import prepare, virtme_run

#: The exit status when the test bed failed and the command has none of its own.
BED_FAILED = 125


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m volmig.testing.vm",
        description="Run a command as root in a virtual machine that has the host's files, this checkout, this virtual "
        "environment and a real device mapper. The exit status is the command's; 125 if the machine failed.",
    )
    made.add_argument("--memory", default="2G", metavar="SIZE", help="as QEMU takes it (default: %(default)s)")
    made.add_argument("--cpus", type=int, default=2, metavar="NUMBER", help="default: %(default)s")
    made.add_argument(
        "--timeout", type=float, default=1800.0, metavar="SECONDS", help="of the command (default: %(default).0f)"
    )
    made.add_argument("--boot-timeout", type=float, default=420.0, metavar="SECONDS", help="default: %(default).0f")
    made.add_argument(
        "--disk",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a raw file that is a disk of the machine, /dev/disk/by-id/virtio-volmig-0 and so on; it stays as it was "
        "written. May be given more than once",
    )
    made.add_argument("--module", action="append", default=[], metavar="NAME", help="a kernel module to load as well")
    made.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable of the command's environment, which has nothing of this one's otherwise",
    )
    made.add_argument(
        "--results",
        type=Path,
        metavar="DIRECTORY",
        help="gets output.log, console.log, dmesg.log, and what the command leaves in $VOLMIG_VM_RESULTS",
    )
    made.add_argument("--cache", type=Path, metavar="DIRECTORY", help=f"of kernels (default: {default_cache()})")
    made.add_argument("--accelerator", choices=("tcg", "kvm"), default="tcg", help="default: %(default)s, emulation")
    made.add_argument("--prepare-only", action="store_true", help="install and download what is missing, and end")
    made.add_argument("command", nargs="*", metavar="COMMAND", help="after --; no shell reads it")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status."""
    known = parser()
    given = known.parse_args(arguments)
    if not given.command and not given.prepare_only:
        known.error("there is no COMMAND; give it after --")
    signal.signal(signal.SIGTERM, _leave)
    try:
        prepare()
        virtme_run()
        cache = KernelCache(given.cache or default_cache())
        kernel = cache.kernel()
        _say(f"kernel {kernel.image}")
        if given.prepare_only:
            return 0
        options = MachineOptions(
            memory=given.memory,
            cpus=given.cpus,
            disks=tuple(given.disk),
            modules=(*DEFAULT_MODULES, *given.module),
            results=given.results,
            accelerator=given.accelerator,
            boot_timeout_seconds=given.boot_timeout,
        )
        machine = VirtualMachine(options, output=sys.stdout.buffer, kernel=lambda: kernel)
        with machine:
            _say(f"ready after {machine.boot_seconds:.0f} seconds")
            began = time.monotonic()
            status = machine.run(
                given.command, environment=_environment(given.env, os.environ), timeout_seconds=given.timeout
            )
            _say(f"{given.command[0]} ended with status {status} after {time.monotonic() - began:.0f} seconds")
    except BedError as error:
        _say(str(error))
        return BED_FAILED
    except KeyboardInterrupt:
        _say("interrupted; the machine was switched off")
        return 130
    return status


def _environment(chosen: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    made = {}
    for setting in chosen:
        name, has_value, value = setting.partition("=")
        if not name.isidentifier():
            raise BedError(f"--env {setting}: {name!r} is not a name of a variable.")
        if has_value or name in own:
            made[name] = value if has_value else own[name]
    return made


def _leave(*_: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    # To stderr: stdout has what the command says, and nothing else.
    sys.stderr.write(f"volmig.testing.vm: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
