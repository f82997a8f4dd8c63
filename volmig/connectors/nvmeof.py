"""Volumes over NVMe/TCP and other fabrics, attached by os-brick and nvme-cli."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from volmig.connectors.base import Connector
from volmig.connectors.brick import Runner, attach_errors, load, require_program
from volmig.connectors.serial import require_serial

_PROTOCOL = "NVMe-oF"
_CONTROLLERS = Path("/sys/class/nvme-fabrics/ctl")
_SUBSYSTEMS = Path("/sys/class/nvme-subsystem")


class NvmeofConnector(Connector):
    """``data`` as Cinder's drivers give it: ``target_nqn``, ``vol_uuid``, ``portals`` and ``host_nqn``.

    Needs root or sudo, and the kernel's modules for the fabric.
    """

    def connect(self, data: Mapping[str, Any]) -> str:
        require_program("nvme")
        runner = Runner()
        target = str(data.get("target_nqn"))
        with attach_errors(runner, target=target, protocol=_PROTOCOL, action="attaching"):
            path = str(self._brick(runner).connect_volume(dict(data))["path"])
        return require_serial(self, path, data, target=target, protocol=_PROTOCOL)

    def disconnect(self, data: Mapping[str, Any]) -> None:
        require_program("nvme")
        runner = Runner()
        target = str(data["target_nqn"])
        with attach_errors(runner, target=target, protocol=_PROTOCOL, action="letting go"):
            device = _device(data)
            if device is not None:
                # It writes back what is cached; it takes the path for granted.
                self._brick(runner).disconnect_volume(dict(data), {"type": "block", "path": device})
            # It leaves a connection that shows no volume any more, or has lost its target; that would try for ever.
            if _is_there(data):
                runner.run_as_root("nvme", "disconnect", "-n", target)

    @staticmethod
    def _brick(runner: Runner) -> Any:
        module = load("nvmeof", purpose="attaching volumes over NVMe")
        return module.NVMeOFConnector(runner.root_helper, execute=runner, use_multipath=False)


def _is_there(data: Mapping[str, Any], controllers: Path = _CONTROLLERS) -> bool:
    """Say whether this host has a connection to the volume's subsystem, in whatever state."""
    return any(True for _ in _of_subsystem(controllers, str(data["target_nqn"])))


def _device(data: Mapping[str, Any], subsystems: Path = _SUBSYSTEMS) -> str | None:
    """Return the device that the volume's subsystem shows on this host; None when there is none."""
    for subsystem in _of_subsystem(subsystems, str(data["target_nqn"])):
        for namespace in sorted(subsystem.glob("nvme*n*")):
            # Paths of single controllers are called nvme0c0n1, and have no device.
            if (device := Path("/dev") / namespace.name).is_block_device():
                return str(device)
    return None


def _of_subsystem(directory: Path, nqn: str) -> Iterator[Path]:
    for path in directory.glob("nvme*/subsysnqn"):
        try:
            if path.read_text().strip() == nqn:
                yield path.parent
        except OSError:
            # It went away meanwhile.
            continue
