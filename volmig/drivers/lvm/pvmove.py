"""The program ``pvmove`` on one volume: beginning a move, bringing it to its end, and taking it back.

It always names the volume: else all of the disk would be moved when there is nothing to be brought to its end any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from volmig.drivers.lvm.commands import CommandFailed, Commands

BEGIN_SECONDS: Final = (3, 6, 12, 24, 48, 96)
"""How long a pvmove gets until it must have begun; each time that it has not, it gets longer."""

_ENDS: Final = ((60, "HUP"), (15, "INT"), (0, "TERM"))
"""How long after that it is told to end, and by what. A signal is lost, as seen, that comes while LVM is busy with its
metadata, and ``timeout`` passes each one on only once. LVM ends by any of the three, and only where it may."""

_NEVER: Final = "+1800"
"""After how many seconds it is to look first how far it is: it has ended by then."""

TIMED_OUT: Final = 124
"""Status of ``timeout`` when it has ended its program."""

_POLLS_ITSELF: Final = ("--config", "global/use_lvmpolld=0")
"""Lets nobody else, such as a daemon, make the move take effect."""


def pvmove_at_work(vg: str, lv: str, *, processes: Path = Path("/proc")) -> bool:
    """Say whether a ``pvmove`` of this volume runs on this machine, also one behind ``sudo``."""
    name = f"{vg}/{lv}".encode()
    for entry in processes.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or is somebody else's and hidden
            continue
        if name in words and any(word.rpartition(b"/")[2] == b"pvmove" for word in words):
            return True
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pvmove:
    """Runs ``pvmove`` for one logical volume."""

    commands: Commands
    vg: str
    lv: str

    def begin(self, source: str, targets: Sequence[str], seconds: int) -> None:
        """Begin a move off a physical volume, and leave it as soon as it waits for its first look.

        That it has not ended within *seconds* is what is expected; whether it has begun, the metadata tells.

        :raises CommandFailed: when it has failed.
        """
        ends = (word for later, how in _ENDS for word in ("timeout", f"--signal={how}", str(seconds + later)))
        try:
            self._run(source, targets, *ends, interval=_NEVER)
        except CommandFailed as ended:
            if ended.status != TIMED_OUT:
                raise

    def finish(self, source: str, targets: Sequence[str]) -> None:
        """Have a move that is copied take effect. :raises CommandFailed: when it has failed."""
        self._run(source, targets, interval="1")

    def _run(self, source: str, targets: Sequence[str], *before: str, interval: str) -> None:
        self.commands.run(
            *before,
            *("pvmove", "-qq", "--atomic", "--interval", interval, *_POLLS_ITSELF),
            *("--name", f"{self.vg}/{self.lv}", source, *targets),
        )

    def abort(self, source: str) -> None:
        """Take the move off a physical volume back. :raises CommandFailed: when it has failed, or there is none."""
        self.commands.run("pvmove", "--abort", source)
