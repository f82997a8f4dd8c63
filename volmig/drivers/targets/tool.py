"""The program that changes the kernel's targets: ``python -I -m volmig.drivers.targets.tool``, as root.

It reads one request as JSON from its standard input, carries it out, and prints the answer as JSON. One such program
works at a time; it may be killed at any time, and the repeated request then ends what was begun.

A request says until when it may take (``until``, on the clock of :func:`time.monotonic`, which all processes of a boot
share). The program ends then, by itself: whoever asked may not be able to kill one that runs as root, and must be able
to rely on that nothing happens any more once it was given up.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volmig.drivers.targets.configfs import ConfigFs
from volmig.drivers.targets.lio import MODULES as LIO_MODULES
from volmig.drivers.targets.lio import SUBTREE as LIO_SUBTREE
from volmig.drivers.targets.lio import Lio
from volmig.drivers.targets.nvmet_tree import MODULES as NVMET_MODULES
from volmig.drivers.targets.nvmet_tree import SUBTREE as NVMET_SUBTREE
from volmig.drivers.targets.nvmet_tree import Nvmet
from volmig.drivers.targets.requests import Export, Refused, checked_host_name, checked_name

_CONFIGFS = Path("/sys/kernel/config")
_LOCK = Path("/run/volmig-targets.lock")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def carry_out(targets: Lio | Nvmet, request: Mapping[str, Any]) -> list[str]:
    """Do what a request says; return names of targets if it asks for them.

    :raises Refused: when it cannot be done.
    """
    action = request.get("action")
    if action == "list":
        return targets.names()
    if action == "export":
        targets.export(Export.parse(request))
    elif action == "revoke":
        targets.revoke(checked_name(request.get("name")), checked_host_name(request.get("host_name")))
    elif action == "remove":
        name = checked_name(request.get("name"))
        if users := targets.users(name):
            raise Refused("in-use", ", ".join(users))
        targets.remove(name)
    else:
        raise Refused("failed", f"there is no action {action!r}")
    return []


def open_targets(request: Mapping[str, Any]) -> Lio | Nvmet | None:
    """Return the kernel's targets of a protocol, loading its modules; None when nothing has to be done without them."""
    protocol = request.get("protocol")
    if protocol not in ("iscsi", "nvmet_tcp"):
        raise Refused("failed", f"there is no protocol {protocol!r}")
    subtree, modules = (LIO_SUBTREE, LIO_MODULES) if protocol == "iscsi" else (NVMET_SUBTREE, NVMET_MODULES)
    root = _CONFIGFS / subtree
    if not root.is_dir() and request.get("action") != "export":
        return None
    if request.get("action") == "export":
        _load(root, modules)
    tree = ConfigFs(root)
    return Lio(tree) if protocol == "iscsi" else Nvmet(tree)


def _load(root: Path, modules: tuple[str, ...]) -> None:
    missing = [module for module in modules if not Path(f"/sys/module/{module}").is_dir()]
    if missing:
        _run("modprobe", "--all", *missing)
    if not root.is_dir():
        _run("mount", "-t", "configfs", "none", str(_CONFIGFS))
    if not root.is_dir():
        raise Refused("unsupported", f"the kernel has no {root}")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": _PATH, "LC_ALL": "C"})
    except OSError as error:
        raise Refused("unsupported", f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Refused("unsupported", f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def _in_time(request: Mapping[str, Any]) -> Iterator[None]:
    """End this program when the time of a request is over, however busy it is with it.

    :raises Refused: when it is over already.
    """
    seconds = float(request["until"]) - time.monotonic()
    if not math.isfinite(seconds):
        raise ValueError
    if seconds <= 0:
        raise Refused("failed", "the request came when its time was over")
    # The signal's own action, in place of a function of Python's, which would wait for a call of the kernel to return.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _alone() -> Iterator[None]:
    fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def answer(text: str) -> dict[str, Any]:
    """Carry a request out, and return the answer to it."""
    try:
        request = dict(json.loads(text))
        with _in_time(request), _alone():
            targets = open_targets(request)
            return {"answer": carry_out(targets, request) if targets else []}
    except Refused as refusal:
        return {"refused": refusal.kind, "reason": str(refusal)}
    except OSError as error:
        return {"refused": "failed", "reason": f"{error.filename or 'the kernel'}: {error.strerror}"}
    except (KeyError, ValueError, TypeError):
        # Without what was wrong: a secret may be in it.
        return {"refused": "failed", "reason": "the request makes no sense"}


def main() -> None:
    """Answer the request on the standard input."""
    json.dump(answer(sys.stdin.read()), sys.stdout)


if __name__ == "__main__":
    main()
