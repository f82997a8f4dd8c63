"""A test bed with a real device mapper: a virtual machine that runs tests of drivers with the host's own files.

``python -m volmig.testing.vm -- pytest tests`` boots Debian's kernel under QEMU, runs the command in it as root with
the same checkout and virtual environment, shows its output as it comes, and ends with its exit status. For tests
that live on the host, :func:`boot` gives a machine that runs many commands and can lose its power.
"""

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
from volmig.testing.vm.machine import DEFAULT_MODULES, GuestCommand, MachineOptions, VirtualMachine, boot
from volmig.testing.vm.packages import prepare

__all__ = [
    "DEFAULT_MODULES",
    "BedError",
    "BedIncomplete",
    "BootFailed",
    "CommandTimedOut",
    "GuestCommand",
    "Kernel",
    "KernelCache",
    "MachineEnded",
    "MachineOptions",
    "MachinePanicked",
    "MachinePoweredOff",
    "VirtualMachine",
    "boot",
    "default_cache",
    "prepare",
]
