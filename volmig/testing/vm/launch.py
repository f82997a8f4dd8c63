"""The command line that starts a machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from volmig.testing.vm import guest
from volmig.testing.vm.errors import BedIncomplete
from volmig.testing.vm.kernel import Kernel

_ACCELERATORS = {
    # Without erms the kernel clears and copies pages by words: a string instruction is emulated byte by byte.
    "tcg": ("-accel", "tcg,thread=multi", "-cpu", "max,-erms"),
    # virtme-run names the accelerator itself, and QEMU takes no second word on it.
    "kvm": ("-cpu", "host"),
}


class Wanted(Protocol):
    """What the command line depends on."""

    @property
    def memory(self) -> str: ...
    @property
    def cpus(self) -> int: ...
    @property
    def disks(self) -> tuple[Path, ...]: ...
    @property
    def accelerator(self) -> str: ...


def launch_command(launcher: Sequence[str], *, kernel: Kernel, exchange: Path, options: Wanted) -> list[str]:
    """Return virtme-run's command line for a machine whose boot script is in ``exchange``.

    Each disk is a raw file on the paravirtual bus; a write that the guest did not flush survives in the host's
    memory, so that a power-off of the guest loses only what the guest itself still held.

    :raises BedIncomplete: a path has characters that the kernel's command line cannot carry, or a disk is not there.
    """
    for path in (kernel.image, kernel.modules, exchange):
        if not re.fullmatch(r"[\w./+@~=-]+", str(path), re.ASCII):
            raise BedIncomplete(
                f"{path} has characters that the kernel's command line cannot carry.",
                hint="Use other places: --cache for the kernel, TMPDIR for temporary files.",
            )
    if options.accelerator not in _ACCELERATORS:
        raise BedIncomplete(f"{options.accelerator!r} is no accelerator.", hint="tcg or kvm")
    qemu: list[str] = [*_ACCELERATORS[options.accelerator]]
    # The host's root once more: the guest mounts this one with a cache.
    qemu += ["-fsdev", "local,id=volmig,path=/,security_model=none,readonly=on,multidevs=remap"]
    qemu += ["-device", f"virtio-9p-pci,fsdev=volmig,mount_tag={guest.ROOT_TAG}"]
    for number, disk in enumerate(options.disks):
        if not disk.exists():
            raise BedIncomplete(f"The disk {disk} does not exist.", hint=f"Make it: truncate -s 1G {disk}")
        name = f"volmig-{number}"
        file = str(disk.resolve()).replace(",", ",,")
        qemu += ["-drive", f"if=none,id={name},format=raw,cache=writeback,discard=unmap,file={file}"]
        qemu += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return [
        *launcher,
        "--kimg",
        str(kernel.image),
        "--mods",
        "auto",
        "--force-9p",
        *([] if options.accelerator == "kvm" else ["--disable-kvm"]),
        "--cpus",
        str(options.cpus),
        "--memory",
        options.memory,
        "--name",
        "volmig-vm",
        "--cwd",
        "/",
        f"--rwdir={guest.EXCHANGE}={exchange}",
        # Where the host has no /lib/modules, virtme's init makes it; this also has the overlay module loaded.
        "--overlay-rwdir=/lib",
        # The kernel's last words are what tells a panic from a power-off.
        "--show-boot-console",
        "-a",
        "quiet",
        "-a",
        "loglevel=5",
        # QEMU 7 translates a program anew for each address that it is loaded at. Always at the same one, the programs
        # that tests start by the hundreds, such as LVM's, take half the time.
        "-a",
        "norandmaps",
        "--script-sh",
        f"exec bash {guest.EXCHANGE}/guest/boot.sh",
        "--qemu-opts",
        *qemu,
    ]
