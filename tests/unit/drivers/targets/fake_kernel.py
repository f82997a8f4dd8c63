"""A stand-in for the kernel's configuration file system, with its rules as Linux 6.1 was seen to apply them.

Objects come with attributes and groups; an object that another one links to, or that has objects below it, cannot be
removed; a store that holds no device must not be asked for what depends on one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Container
from pathlib import Path

from volmig.drivers.targets.configfs import ConfigFs

_STORE = re.compile(r"core/iblock_\d+/[^/]+")
_RULES: tuple[tuple[str, dict[str, str], tuple[str, ...]], ...] = (
    (
        r"core/iblock_\d+/[^/]+",
        {
            "enable": "0",
            "info": "Major: 0 Minor: 0",
            "control": "",
            "udev_path": "",
            "wwn/vpd_unit_serial": "T10 VPD Unit Serial Number: ",
            "attrib/emulate_tpu": "0",
            "attrib/emulate_tpws": "0",
        },
        (),
    ),
    (
        r"iscsi/[^/]+/tpgt_1",
        {
            "enable": "0",
            "attrib/authentication": "0",
            "attrib/generate_node_acls": "1",
            "attrib/demo_mode_discovery": "1",
        },
        ("lun", "acls", "np"),
    ),
    (
        r"iscsi/[^/]+/tpgt_1/acls/[^/]+",
        {"auth/userid": "", "auth/password": "", "info": "No active iSCSI Session for Initiator Endpoint: it"},
        (),
    ),
    (r"subsystems/[^/]+", {"attr_allow_any_host": "1", "attr_serial": "x"}, ("namespaces", "allowed_hosts")),
    (
        r"subsystems/[^/]+/namespaces/\d+",
        {"enable": "0", "device_path": "(null)", "device_uuid": "x", "revalidate_size": ""},
        (),
    ),
    (
        r"ports/\d+",
        {"addr_trtype": "", "addr_adrfam": "", "addr_traddr": "", "addr_trsvcid": ""},
        ("subsystems", "referrals"),
    ),
)


class PowerCut(BaseException):
    """The program was killed."""


class FakeKernel(ConfigFs):
    """Directories and files that behave like the kernel's objects.

    :ivar allowed: how many operations are carried out before the power goes; None for all.
    :ivar failing: numbers of the operations that the kernel refuses.
    :ivar after_each: called after each operation.
    """

    def __init__(self, root: Path, *, after_each: Callable[[FakeKernel], None] = lambda _: None) -> None:
        super().__init__(root)
        self.allowed: int | None = None
        self.failing: Container[int] = ()
        self.after_each = after_each
        self.busy: set[str] = set()
        self.operations = 0
        for group in ("core", "iscsi", "subsystems", "hosts", "ports"):
            (root / group).mkdir(parents=True, exist_ok=True)

    def state(self) -> dict[str, str]:
        """Return all that there is: objects, links and attributes."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            found[name] = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else path.read_text()
        return found

    def _operate(self) -> None:
        if self.allowed is not None and self.operations >= self.allowed:
            raise PowerCut
        self.operations += 1
        if self.operations - 1 in self.failing:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    def _make(self, path: Path) -> None:
        self._operate()
        path.mkdir()
        relative = str(path.relative_to(self.root))
        for pattern, attributes, groups in _RULES:
            if re.fullmatch(pattern, relative):
                for group in groups:
                    (path / group).mkdir()
                for name, value in attributes.items():
                    (path / name).parent.mkdir(exist_ok=True)
                    (path / name).write_text(value)
        self.after_each(self)

    def write(self, relative: str, value: str) -> None:
        self._operate()
        path = self.path(relative)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        owner, name = relative.rpartition("/")[0], path.name
        if name == "vpd_unit_serial":
            value = f"T10 VPD Unit Serial Number: {value}"
        if owner.endswith("attrib") and _STORE.fullmatch(owner.rpartition("/")[0]):
            assert self.read(f"{owner.rpartition('/')[0]}/enable") == "1", "this brings Linux 6.1 down"
        if name == "enable" and value == "1":
            self._enable(owner)
        path.write_text(value)
        self.after_each(self)

    def _enable(self, owner: str) -> None:
        if _STORE.fullmatch(owner):
            device = self.read(f"{owner}/control").removeprefix("udev_path=")
            if device in self.busy:
                raise OSError(errno.EBUSY, "Device or resource busy")
            number = Path(device).stat().st_rdev
            text = f"Status: ACTIVATED\n Major: {os.major(number)} Minor: {os.minor(number)} CLAIMED: IBLOCK"
            self.path(f"{owner}/info").write_text(text)
        elif "/namespaces/" in owner and not Path(self.read(f"{owner}/device_path")).exists():
            raise OSError(errno.ENOENT, "No such device")

    def link(self, relative: str, target: str) -> None:
        if self.path(relative).is_symlink() and self.path(relative).resolve() == self.path(target).resolve():
            return
        self._operate()
        assert self.path(target).is_dir(), f"{target} is not there to be linked to"
        super().link(relative, target)
        self.after_each(self)

    def unlink(self, relative: str) -> None:
        if self.path(relative).is_symlink():
            self._operate()
        super().unlink(relative)
        self.after_each(self)

    def remove(self, relative: str) -> None:
        path = self.path(relative)
        if not path.exists():
            return
        self._operate()
        if any(each.is_symlink() and path in (each.resolve(), *each.resolve().parents) for each in self._all()):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        known = {str(path / group) for pattern, _, groups in _RULES for group in groups if self._fits(pattern, path)}
        below = [each for each in path.iterdir() if each.is_dir() and each.name not in ("attrib", "auth", "wwn")]
        if any(str(each) not in known or any(each.iterdir()) for each in below):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        shutil.rmtree(path)
        self.after_each(self)

    def _fits(self, pattern: str, path: Path) -> bool:
        return re.fullmatch(pattern, str(path.relative_to(self.root))) is not None

    def _all(self) -> list[Path]:
        return list(self.root.rglob("*"))
