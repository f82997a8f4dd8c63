"""Clearing what a thick volume holds, before its room is given to others."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.group import Group
from volmig.drivers.lvm.reports import LogicalVolume

LOG = logging.getLogger(__name__)

_STEP_BYTES: Final = 256 * 1024**2
"""How much is cleared by one program, so that a process that ends does not leave one at work for long."""
_NOTE_STEPS: Final = 16
"""After how many of them it is noted how far it is."""
_GRAIN_BYTES: Final = 1024**2
"""What is cleared is a multiple of it: blkdiscard(8) takes whole sectors only, whose size is the device's."""
_NOT_OFFERED: Final = re.compile(r"not supported", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clearing:
    """Clears volumes of one group."""

    group: Group

    def length(self, size_bytes: int) -> int:
        """Return how much of so many bytes the options have cleared, from the beginning."""
        wanted = self.group.settings.clear_size_bytes or size_bytes
        return min(-(-wanted // _GRAIN_BYTES) * _GRAIN_BYTES, size_bytes)

    def clear(
        self,
        lv: LogicalVolume,
        vg_uuid: str,
        *,
        whole: bool = False,
        begin: int = 0,
        note: Callable[[int], None] | None = None,
    ) -> None:
        """Overwrite or discard what a thick volume holds, as the options say; with ``volume_clear = none`` too.

        :param whole: all of it, whatever ``volume_clear_size_bytes`` says.
        :param begin: how many bytes of it are cleared already.
        :param note: is told now and then how many are.
        :raises volmig.drivers.lvm.devices.NotThatVolume: when it is not there, or its device is not.
        :raises volmig.drivers.lvm.commands.CommandFailed: when it cannot be cleared, for instance since it is open.
        """
        end = lv.size_bytes if whole else self.length(lv.size_bytes)
        self.group.activate(lv)
        found = self.group.devices
        path = self.group.path(lv.name)
        # What clears is given the device that is held open here, not a name that can come to mean another volume.
        with found.opened(path, vg_uuid=vg_uuid, lv_uuid=lv.uuid, flags=os.O_RDONLY) as fd:
            node = found.node(fd)
            zeroing = self.group.settings.clear != "discard"
            for step, start in enumerate(range(begin, end, _STEP_BYTES), start=1):
                length = min(_STEP_BYTES, end - start)
                try:
                    self._blkdiscard(node, start, length, zeroing=zeroing)
                except CommandFailed as exc:
                    if zeroing or not _NOT_OFFERED.search(exc.stderr):
                        raise
                    LOG.warning("%s cannot discard; it is overwritten with zeroes", path, extra={"lv": lv.name})
                    zeroing = True
                    self._blkdiscard(node, start, length, zeroing=True)
                if note is not None and step % _NOTE_STEPS == 0:
                    note(start + length)

    def _blkdiscard(self, node: Path, start: int, length: int, *, zeroing: bool) -> None:
        ionice = self.group.settings.clear_ionice
        self.group.commands.run(
            *(("ionice", *ionice) if ionice else ()),
            *("blkdiscard", *(("--zeroout",) if zeroing else ())),
            *("--offset", str(start), "--length", str(length), str(node)),
        )
