"""Volumes over iSCSI, attached by os-brick and open-iscsi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volmig.connectors.base import Connector, without_secrets
from volmig.connectors.brick import Runner, attach_errors, load, require_program
from volmig.connectors.serial import require_serial

_PROTOCOL = "iSCSI"
_NONE_FOUND = 21
"""Exit status of iscsiadm when there is no such record or session."""


class IscsiConnector(Connector):
    """``data`` as Cinder's drivers give it: ``target_portal``, ``target_iqn``, ``target_lun``, and the CHAP entries.

    Needs root or sudo, and a running iscsid.
    """

    def connect(self, data: Mapping[str, Any]) -> str:
        require_program("iscsiadm")
        runner = Runner()
        target = f"{data.get('target_iqn')} at {data.get('target_portal')}"
        with attach_errors(runner, target=target, protocol=_PROTOCOL, action="attaching"):
            path = str(self._brick(runner).connect_volume(dict(data))["path"])
        return require_serial(self, path, data, target=target, protocol=_PROTOCOL)

    def disconnect(self, data: Mapping[str, Any]) -> None:
        require_program("iscsiadm")
        runner = Runner()
        iqn = str(data["target_iqn"])
        target = f"{iqn} at {data.get('target_portal')}"
        with attach_errors(runner, target=target, protocol=_PROTOCOL, action="letting go"):
            if self._has_session(runner, iqn):
                self._brick(runner).disconnect_volume(dict(data), None)
            # It forgets records of logins that were cut off; they hold the secret, and would log in after a reboot.
            self._forget(runner, iqn)

    def release_data(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        return {key: value for key, value in without_secrets(data).items() if not key.startswith("auth_")}

    @staticmethod
    def _has_session(runner: Runner, target: str) -> bool:
        return target in runner.run_as_root("iscsiadm", "-m", "session", accept=(0, _NONE_FOUND)).split()

    def _forget(self, runner: Runner, target: str) -> None:
        """Log out of a target and delete its records, as far as there are any."""
        if self._has_session(runner, target):
            runner.run_as_root("iscsiadm", "-m", "node", "-T", target, "--logout", accept=(0, _NONE_FOUND))
        if target in runner.run_as_root("iscsiadm", "-m", "node", accept=(0, _NONE_FOUND)).split():
            runner.run_as_root("iscsiadm", "-m", "node", "-T", target, "--op", "delete", accept=(0, _NONE_FOUND))

    @staticmethod
    def _brick(runner: Runner) -> Any:
        module = load("iscsi", purpose="attaching volumes over iSCSI")
        return module.ISCSIConnector(runner.root_helper, execute=runner, use_multipath=False)
