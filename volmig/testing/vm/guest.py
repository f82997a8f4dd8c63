"""The scripts that run in the guest, made with each value quoted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from volmig.testing.vm.errors import BedError

#: Where guest and host exchange files: scripts to the guest, results and the kernel's log to the host.
EXCHANGE = "/run/volmig-vm"
#: What a command finds in its environment: the directory whose files are handed to the caller.
RESULTS_VARIABLE = "VOLMIG_VM_RESULTS"
# A file system of the guest alone, in its memory.
_MEMORY = "/dev/shm"  # noqa: S108
#: The tag of the host's root file system, which the guest mounts with a cache.
ROOT_TAG = "volmig_root"

# virtme's root is 9p without a cache: each page of each program is asked of the host each time, which under emulation
# makes a Python start cost seconds. The same directory is mounted once more, with a cache, and becomes the root.
# pivot_root takes all processes along, so that udevd, which virtme started, reads its rules from there as well.
_FIRST = r"""#!/bin/bash
# Make the root that the commands see, then run the agent in it.
set -eEu
said=booting
fail() { trap - ERR; printf '\0%s:failed:%s\0' @TOKEN@ "$*"; exit 1; }
trap 'fail "$said: $BASH_COMMAND (line $LINENO)"' ERR
new=/run/volmig-root
said='make the root file system'
dmesg --console-level 5
mkdir -p $new/host $new/rw $new/root
mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,cache=loose,msize=512000 @TAG@ $new/host
mount -t tmpfs -o mode=0755 tmpfs $new/rw
mkdir $new/rw/upper $new/rw/work
mount -t overlay -o xino=off,lowerdir=$new/host,upperdir=$new/rw/upper,workdir=$new/rw/work overlay $new/root
mkdir -p $new/root/proc $new/root/sys $new/root/dev $new/root/run $new/root/lib/modules $new/root/volmig-old
mount --rbind /proc $new/root/proc
mount --rbind /sys $new/root/sys
mount --rbind /dev $new/root/dev
mount --bind /run $new/root/run
mount --bind @EXCHANGE@ $new/root@EXCHANGE@
mount -t tmpfs tmpfs $new/root/lib/modules
ln -s @MODULES_DIRECTORY@ "$new/root/lib/modules/$(uname -r)"
cd $new/root
pivot_root . volmig-old
cd /
umount -l /volmig-old
exec bash @EXCHANGE@/guest/agent.sh
"""

_AGENT = r"""#!/bin/bash
# Run what the host asks for, one line each; power off when the host hangs up.
set -eEu
said=preparing
mark() { printf '\0%s:%s:%s\0' @TOKEN@ "$1" "$2"; }
fail() { trap - ERR; mark failed "$*"; exit 1; }
trap 'fail "$said: $BASH_COMMAND (line $LINENO)"' ERR
dmesg --follow > @EXCHANGE@/results/dmesg.log 2>/dev/null < /dev/null &
said='load the kernel modules @MODULES@'
modprobe -a configfs @MODULES@
said='set up the system'
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
ip link set lo up
mkdir -p /run/lock/lvm /run/lvm /dev/shm/home /dev/shm/temporary
chmod 1777 /dev/shm/temporary
udevadm settle --timeout=120
trap - ERR
set +eE
# With what the shell has built in: to start a program may be what hangs.
processes() {
    for place in /proc/[0-9]*; do
        mapfile -d '' -t words < "$place/cmdline"
        [ ${#words[@]} -gt 0 ] || continue
        wchan=; state=
        read -r wchan < "$place/wchan"
        while read -r key state _; do [ "$key" = State: ] && break; done < "$place/status"
        printf '%s %s %s %s\n' "${place#/proc/}" "$state" "$wchan" "${words[*]}"
    done
}
mark ready "$(uname -r)"
while read -r verb number; do
    case $verb in
    run)
        ( setsid bash "@EXCHANGE@/commands/$number.sh" < /dev/null; mark "end-$number" $? ) 2>&1 &
        ;;
    show)
        echo w > /proc/sysrq-trigger
        processes > "@EXCHANGE@/results/processes.log" 2>/dev/null
        mark shown "$number"
        ;;
    esac
done
sync
"""


def boot_script(*, token: str, modules_directory: PurePosixPath) -> str:
    """Return the script that virtme's init starts: it makes the root file system and goes on with the agent."""
    return _filled(_FIRST, TOKEN=token, TAG=ROOT_TAG, EXCHANGE=EXCHANGE, MODULES_DIRECTORY=str(modules_directory))


def agent_script(*, token: str, modules: Sequence[str]) -> str:
    """Return the script that loads ``modules``, says that the machine is ready, and runs what it is asked to.

    :raises BedError: a module has a name that none can have.
    """
    for module in modules:
        if not re.fullmatch(r"[\w-]+", module, re.ASCII):
            raise BedError(f"{module!r} is not the name of a kernel module.")
    text = _AGENT.replace("@MODULES@", shlex.join(modules))
    return _filled(text, TOKEN=token, EXCHANGE=EXCHANGE)


def command_script(command: Sequence[str], *, directory: PurePosixPath, environment: Mapping[str, str]) -> str:
    """Return the script that replaces itself with ``command``, in ``directory``, with ``environment`` and no other."""
    if not command:
        raise ValueError("the command is empty")
    for name in environment:
        if not name.isidentifier() or not name.isascii():
            raise ValueError(f"{name!r} is not a name of an environment variable")
    settings = [f"{name}={value}" for name, value in environment.items()]
    return "\n".join(
        (
            "#!/bin/bash",
            f"cd -- {shlex.quote(str(directory))} || exit 126",
            shlex.join(["exec", "env", "-i", "--", *settings, *command]),
            "",
        )
    )


def environment_of(prefix: PurePosixPath, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: the virtual environment at ``prefix``, and what the caller chose."""
    return {
        "PATH": f"{prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "VIRTUAL_ENV": str(prefix),
        "HOME": f"{_MEMORY}/home",
        "TMPDIR": f"{_MEMORY}/temporary",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONUNBUFFERED": "1",
        # The agent's own descriptors are no leak of the program that runs LVM.
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        RESULTS_VARIABLE: f"{EXCHANGE}/results",
        **chosen,
    }


def _filled(text: str, **values: str) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", shlex.quote(value))
    return text
