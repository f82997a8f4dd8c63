"""A fake of losetup and of LVM's programs, as far as loopback uses them. Nothing here touches the real ones.

The files are real, and a volume group's metadata is real bytes in its file, so that it goes where the file goes. A loop
device is a hard link to its file in a directory of the fake, so that all of it outlives a process that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from volmig.drivers.lvm.commands import Commands, Completed

LABEL_AT = 512
METADATA_BYTES = 4096


class FakeMachine:
    """The block devices of a machine that is not there.

    :param state: an empty directory on the file system of the files that are attached.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.log: list[tuple[str, ...]] = []
        self.direct_io = True
        self.before: Callable[[int], None] = lambda _: None
        self.after: Callable[[int], None] = lambda _: None

    def commands(self) -> Commands:
        return Commands(run=self.run, pause=lambda _: None)

    def run(self, command: Sequence[str], stdin: bytes | None) -> Completed:
        number = len(self.log)
        self.before(number)
        self.log.append(tuple(command))
        self._follow_names()
        program, *words = command
        status, answer, said = getattr(self, f"_{program}")(words)
        self.after(number)
        return Completed(status=status, stdout=answer.encode(), stderr=said.encode())

    def ran(self, program: str) -> list[tuple[str, ...]]:
        return [command for command in self.log if command[0] == program]

    # --- what is there ------------------------------------------------------------------------

    def loops(self) -> dict[str, dict[str, Any]]:
        return {f"/dev/{path.stem}": json.loads(path.read_text()) for path in sorted(self.state.glob("*.json"))}

    def backing(self, device: str) -> Path:
        return self.state / Path(device).name

    def bind(self, file: Path, **changes: Any) -> str:
        device = next(f"/dev/loop{n}" for n in range(99) if not (self.state / f"loop{n}").exists())
        os.link(file, self.backing(device))
        self._change(
            device, **{"file": str(file), "offset": 0, "ro": False, "autoclear": False, "active": False} | changes
        )
        return device

    def unbind(self, device: str) -> None:
        self.backing(device).unlink()
        self.backing(device).with_suffix(".json").unlink()

    def active(self) -> set[str]:
        """Return the names of the volume groups that are active."""
        return {self.group(device)["name"] for device, loop in self.loops().items() if loop["active"]}

    def group(self, device: str) -> Any:
        return read_group(self.backing(device))

    def reboot(self) -> None:
        for device in self.loops():
            self.unbind(device)

    def _change(self, device: str, **changes: Any) -> None:
        path = self.backing(device).with_suffix(".json")
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | changes))

    # --- programs -----------------------------------------------------------------------------

    def _losetup(self, words: list[str]) -> tuple[int, str, str]:
        match words:
            case ["--list", "--json", "--output", _]:
                return 0, json.dumps({"loopdevices": [self._row(name) for name in self.loops()]}), ""
            case ["--find", "--show", path]:
                return 0, self.bind(Path(path)) + "\n", ""
            case ["--direct-io=on", _]:
                return (0, "", "") if self.direct_io else (1, "", "losetup: set direct io failed: Invalid argument")
            case ["--detach", device] if self.loops()[device]["active"]:
                self._change(device, autoclear=True)  # as the kernel does when somebody has it open
                return 0, "", ""
            case ["--detach", device]:
                self.unbind(device)
                return 0, "", ""
        raise AssertionError(words)

    def _follow_names(self) -> None:
        """Know the files by the names that they have now, as the kernel does."""
        for device, loop in self.loops().items():
            named, status = Path(loop["file"]), self.backing(device).stat()
            for path in () if named.exists() and named.samefile(self.backing(device)) else named.parent.iterdir():
                if path.stat(follow_symlinks=False).st_ino == status.st_ino:
                    self._change(device, file=str(path))

    def _row(self, device: str) -> dict[str, Any]:
        loop = self.loops()[device]
        status = self.backing(device).stat()
        return {
            "name": device,
            "back-ino": status.st_ino,
            "back-maj:min": f"  {os.major(status.st_dev)}:{os.minor(status.st_dev)} ",
            "back-file": loop["file"] if status.st_nlink > 1 else f"{loop['file']} (deleted)",
            "offset": loop["offset"],
            "sizelimit": 0,
            "autoclear": loop["autoclear"],
            "ro": loop["ro"],
        }

    def _pvs(self, words: list[str]) -> tuple[int, str, str]:
        rows = [
            {
                "pv_name": device,
                "vg_name": group["name"],
                "vg_uuid": group["uuid"],
                "vg_tags": ",".join(group["tags"]),
            }
            for device in self.loops()
            if (group := self.group(device))
        ]
        return 0, json.dumps({"report": [{"pv": rows}]}), ""

    def _lvs(self, words: list[str]) -> tuple[int, str, str]:
        rows = [
            {"lv_name": name, "lv_device_open": "open" if is_open else "", "lv_layout": layout}
            for device in self._selected(words)
            for name, (layout, is_open) in self.group(device)["lvs"].items()
        ]
        return 0, json.dumps({"report": [{"lv": rows}]}), ""

    def _vgcreate(self, words: list[str]) -> tuple[int, str, str]:
        _, _, _, tag, name, device = words
        if any(group["name"] == name for other in self.loops() if (group := self.group(other))):
            return 5, "", f"A volume group called {name} already exists."
        if self.group(device):
            return 5, "", f"Physical volume '{device}' is already in a volume group"
        write_group(self.backing(device), name, tag)
        return 0, "", ""

    def _vgchange(self, words: list[str]) -> tuple[int, str, str]:
        for device in self._selected(words):
            is_open = any(is_open and "pool" not in layout for layout, is_open in self.group(device)["lvs"].values())
            if words[1] == "n" and is_open:
                return 5, "", "Can't deactivate volume group with open logical volumes"
            self._change(device, active=words[1] == "y")
        return 0, "", ""

    def _selected(self, words: list[str]) -> list[str]:
        wanted = words[words.index("--select") + 1].removeprefix("vg_uuid=")
        return [name for name in self.loops() if (group := self.group(name)) and group["uuid"] == wanted]


def read_group(file: Path) -> Any:
    """Return the metadata in a file; None when it has none."""
    with file.open("rb") as stream:
        stream.seek(LABEL_AT)
        data = stream.read(METADATA_BYTES).rstrip(b"\0")
    return json.loads(data) if data.startswith(b'{"name"') else None


def write_group(file: Path, name: str, *tags: str, **lvs: tuple[str, bool]) -> None:
    """Put a volume group into a file; each logical volume is its layout, and whether it is open."""
    group = {"name": name, "uuid": uuid.uuid4().hex, "tags": tags, "lvs": lvs}
    data = json.dumps(group).encode()
    with file.open("r+b") as stream:
        stream.seek(LABEL_AT)
        stream.write(data.ljust(METADATA_BYTES, b"\0"))


def in_a_process(work: Callable[[], object]) -> int:
    """Do something in a process of its own, which may kill itself; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    """End this process at once, as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)
