"""Exporters through the kernel's targets: what they have in common.

What changes the kernel is a program of its own, run as root by the backend's command prefix; see
:mod:`volmig.drivers.targets.tool`. Requests go to it by its standard input, so that no secret is on a command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from volmig import errors
from volmig.drivers.base import ConnectorProperties
from volmig.drivers.targets.base import Exporter

_SECONDS = 120.0
"""How long the kernel may take. It waits for the requests of a session that is ended."""
_PATIENCE_SECONDS = 5.0
"""How much longer the program is waited for, which ends by itself when that time is over."""


class KernelExporter(Exporter):
    """An :class:`Exporter` whose targets the kernel serves."""

    protocol: ClassVar[str]
    """What the tool calls it."""
    default_prefix: ClassVar[str]
    default_port: ClassVar[int]
    host_key: ClassVar[str]
    """Which of :class:`ConnectorProperties` names the host that attaches."""
    host_file: ClassVar[str]

    @property
    def name_prefix(self) -> str:
        return self.options["target_prefix"] or self.default_prefix

    @property
    def port(self) -> int:
        return self.options["target_port"] or self.default_port

    @property
    def ip_address(self) -> str:
        return str(self.options["target_ip_address"])

    def terminate(self, volume_id: str, connector: ConnectorProperties) -> None:
        name = self.target_name(self.name_prefix, volume_id)
        self._ask("revoke", volume_id, name=name, host_name=self.host_name(connector))

    def remove(self, volume_id: str) -> None:
        self._ask("remove", volume_id, name=self.target_name(self.name_prefix, volume_id))

    def exports(self) -> Sequence[str]:
        names = self._ask("list", "")
        found = (self.volume_of(self.name_prefix, name) for name in names)
        return sorted(volume_id for volume_id in found if volume_id is not None)

    def host_name(self, connector: ConnectorProperties) -> str:
        """Return the name of the host that attaches. :raises volmig.errors.HostNotIdentified: when it has none."""
        name = connector.get(self.host_key)
        if not isinstance(name, str) or not name:
            raise errors.HostNotIdentified(
                host=connector.get("host", ""), what=self.host_key, protocol=self.protocol, file=self.host_file
            )
        return name

    def export(self, volume_id: str, device: str, connector: ConnectorProperties, **more: str) -> str:
        """Show a device to a host; return the name of the target."""
        name = self.target_name(self.name_prefix, volume_id)
        self._ask(
            "export",
            volume_id,
            name=name,
            device=device,
            serial=self.serial(volume_id),
            host_name=self.host_name(connector),
            address=self.ip_address,
            port=self.port,
            **more,
        )
        return name

    def _ask(self, action: str, volume_id: str, **values: Any) -> Any:
        answer = self._run_tool({"protocol": self.protocol, "action": action, **values}, volume_id)
        if "refused" not in answer:
            return answer.get("answer")
        if answer["refused"] == "busy":
            raise errors.StorageBusy(backend=self.backend, reason=answer["reason"])
        if answer["refused"] == "in-use":
            raise errors.VolumeInUse(volume=volume_id, users=f"by its export, from {answer['reason']}")
        raise self.failed(volume_id or "(all)", answer["reason"])

    def _run_tool(self, request: Mapping[str, Any], volume_id: str) -> Mapping[str, Any]:
        # Isolated: what runs as root takes no module from the working directory or the caller's environment.
        command = [*self.prefix, sys.executable, "-I", "-m", "volmig.drivers.targets.tool"]
        until = time.monotonic() + _SECONDS
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise self.failed(volume_id, f"{command[0]} cannot be run: {error.strerror}") from error
        with process:
            try:
                text = json.dumps({**request, "until": until})
                output, complaint = process.communicate(text.encode(), timeout=_SECONDS + _PATIENCE_SECONDS)
            except subprocess.TimeoutExpired as error:
                _kill(process)
                raise self._late(volume_id) from error
            except BaseException:
                _kill(process)
                raise
        try:
            answer = json.loads(output)
        except ValueError as error:
            if time.monotonic() >= until:
                raise self._late(volume_id) from error
            said = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            reason = f"{command[0]} ended with status {process.returncode} and said: {said[0]}"
            raise self.failed(volume_id, reason) from error
        if not isinstance(answer, dict):
            raise self.failed(volume_id, "the answer of the program that changes targets makes no sense")
        return answer

    def _late(self, volume_id: str) -> errors.ExportFailed:
        return self.failed(volume_id, f"the kernel did not answer within {_SECONDS:g} seconds")


def _kill(process: subprocess.Popen[bytes]) -> None:
    # One that runs as another user by sudo cannot be killed. It ends by itself as soon as its time is over.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
