"""When what moves have left behind is cleared, and who waits for that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from volmig import errors
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.group import Group
from volmig.drivers.lvm.leaving import Leavings
from volmig.drivers.lvm.reports import LogicalVolume

LOG = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 30.0
"""How long a call waits for what its caller does not depend on. It goes on afterwards, until the process ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tidying:
    """Has cleared what volumes of one group have left. What fails is told in the log, and tried again later."""

    group: Group

    def after_move(self, lv: LogicalVolume) -> None:
        """Clear what a volume has left that was moved; return when that is done, which may take as long as the move."""
        self._try(lambda: Leavings(group=self.group).settle(lv))

    def after_recovery(self, lv: LogicalVolume) -> None:
        """Likewise, but wait for a moment only: whoever asks where a volume is must have an answer in minutes."""
        self._begin(lambda: Leavings(group=self.group).settle(lv))

    def at_setup(self) -> None:
        """Clear what any volume of the group has left, when nobody else is at it; wait for a moment only.

        What is under way, and what may be undone yet, is left alone.
        """
        leavings = Leavings(group=self.group)
        if not self.group.settings.is_thin and leavings.are_there():
            self._begin(leavings.settle_all)

    def _begin(self, work: Callable[[], object]) -> None:
        done: Future[None] = Future()

        def run() -> None:
            try:
                self._try(work)
            except BaseException as error:  # noqa: BLE001
                done.set_exception(error)  # raised in who waits for it
            else:
                done.set_result(None)

        # A daemon, so that no process stays for it: it can be killed anywhere.
        threading.Thread(target=run, name=f"clear-{self.group.vg}", daemon=True).start()
        try:
            done.result(_PATIENCE_SECONDS)
        except TimeoutError:
            LOG.info("what was left in %s is still being cleared", self.group.vg)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (CommandFailed, errors.VolmigError, OSError) as error:
            LOG.warning(
                "what a moved volume has left in %s is not cleared yet; it will be when volmig starts next, or when "
                "the volume is deleted: %s",
                self.group.vg,
                error,
            )
