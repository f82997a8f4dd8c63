"""os-brick, which attaches volumes, kept at arm's length.

It is imported when a volume is attached and not before; it is told to run its programs by us, so that there is no
privsep daemon and no secret on a command line.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volmig import errors
from volmig.connectors import node_record

ROOT_HELPER = "sudo -n"
"""How programs are run as root by a process that is not."""

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_SECONDS = 180.0
_PACKAGES = {"iscsiadm": "open-iscsi", "nvme": "nvme-cli"}
_SECRET = "node.session.auth.password"  # noqa: S105
_loading = threading.Lock()


def require_program(name: str) -> None:
    """Check that a program is installed. :raises volmig.errors.ProgramMissing: naming the package that has it."""
    if shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}") is None:
        package = _PACKAGES[name]
        hint = f"Install it on this host (Debian package {package})."
        raise errors.ProgramMissing(program=name, package=package, hint=hint)


def load(module: str, *, purpose: str) -> Any:
    """Return a module of os-brick, ready for use in this process.

    :raises volmig.errors.ExtraMissing: when os-brick is not installed.
    """
    with _loading:
        try:
            with warnings.catch_warnings():
                # What it depends on tells its own authors that it is out of date.
                warnings.simplefilter("ignore")
                privileged = importlib.import_module("os_brick.privileged")
                loaded = importlib.import_module(f"os_brick.initiator.connectors.{module}")
            options = importlib.import_module("oslo_config.cfg").CONF
        except ModuleNotFoundError as error:
            raise errors.ExtraMissing(package=error.name, purpose=purpose, extra="connectors") from error
        # What it calls by itself as root is called here and now, not by a daemon that it would start.
        privileged.default.set_client_mode(False)
        if not options.os_brick.lock_path:
            options.set_default("lock_path", str(_lock_directory()), "os_brick")
        return loaded


def _lock_directory() -> Path:
    """Return where its locks are; the same for all processes of this user."""
    base = Path("/run/lock") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir()))
    directory = base / f"volmig-{os.geteuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise errors.AttachFailed(
            target=str(directory), protocol="os-brick", action="locking", reason="it belongs to somebody else"
        )
    return directory


class Runner:
    """Runs os-brick's programs, and remembers what the last one that failed has said."""

    def __init__(self, root_helper: str = ROOT_HELPER) -> None:
        self.root_helper = root_helper
        self.complaint = ""

    def __call__(self, *command: str, **keywords: Any) -> tuple[str, str]:
        """Run a program as ``oslo_concurrency.processutils.execute`` does.

        :raises oslo_concurrency.processutils.ProcessExecutionError: as that does.
        """
        processutils: Any = importlib.import_module("oslo_concurrency.processutils")
        words = [str(word) for word in command]
        keywords = {"timeout": _SECONDS, **keywords, "root_helper": self.root_helper}
        for name in ("interval", "backoff_rate", "signal", "raise_timeout"):
            keywords.pop(name, None)
        if _SECRET in words:
            keywords["process_input"] = self._secret_request(words)
            words = [sys.executable, "-I", "-m", node_record.__name__]
        env = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"}
        try:
            output, complaint = processutils.execute(*words, env_variables=env, **keywords)
        except processutils.ProcessExecutionError as error:
            # What fails while it clears up says nothing of the cause, and nothing on its standard error.
            self.complaint = (error.stderr or self.complaint).strip()
            raise
        except (OSError, subprocess.TimeoutExpired) as error:
            # os-brick handles no other error than this one.
            self.complaint = str(error)
            raise processutils.ProcessExecutionError(cmd=words[0], description=str(error)) from error
        return str(output or ""), str(complaint or "")

    @staticmethod
    def _secret_request(words: list[str]) -> str:
        """Return the request that stands for ``iscsiadm … -T IQN -p PORTAL … -v SECRET``."""
        values = {option: words[words.index(option) + 1] for option in ("-T", "-p", "-v")}
        return json.dumps({"iqn": values["-T"], "portal": values["-p"], "secret": values["-v"]})

    def run_as_root(self, *command: str, accept: tuple[int, ...] = (0,)) -> str:
        """Run a program as root, and return what it prints. :raises OSError: when it fails."""
        prefix = [] if os.geteuid() == 0 else shlex.split(self.root_helper)
        env = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"}
        try:
            done = subprocess.run(
                [*prefix, *command],
                capture_output=True,
                text=True,
                check=False,
                env=env,
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{command[0]} did not end within {_SECONDS:g} seconds") from error
        if done.returncode not in accept:
            raise OSError((done.stderr or done.stdout).strip() or f"{command[0]} ended with {done.returncode}")
        return done.stdout


@contextmanager
def attach_errors(runner: Runner, *, target: str, protocol: str, action: str) -> Iterator[None]:
    """Turn whatever os-brick raises into an error that says why a volume is not attached, or not let go.

    Our own errors stay as they are.

    :raises volmig.errors.AttachFailed: with what the last program that failed has said.
    """
    try:
        yield
    except errors.VolmigError:
        raise
    except Exception as error:
        said = " ".join((runner.complaint or str(error) or type(error).__name__).split())[:500]
        raise errors.AttachFailed(target=target, protocol=protocol, action=action, reason=said) from error
