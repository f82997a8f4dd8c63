"""Giving a finished copy the name of the volume that it is a copy of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from volmig import errors
from volmig.drivers.base import VolumeUpdate
from volmig.drivers.lvm import names
from volmig.drivers.lvm.commands import CommandFailed
from volmig.drivers.lvm.group import Group, View

if TYPE_CHECKING:
    from volmig.model import Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """Renames copies in one group."""

    group: Group

    def rename(self, volume: Volume, copy: Volume, pool: str) -> VolumeUpdate:
        """Give the object of *copy* the name of *volume*, or keep its name where that is taken.

        Succeeds without change after it has succeeded: then the name of the volume is that of an object in this pool
        with the right size, and the copy's own name is gone.

        :raises volmig.errors.VolumeObjectMissing: when there is neither.
        """
        name, final_name = names.object_name(copy), names.volume_name(volume.id)
        final = VolumeUpdate(_name_id=None, provider_location=None, provider_id=None)
        kept = VolumeUpdate(_name_id=copy.backend_id, provider_location=None, provider_id=None)
        if name == final_name:
            self._require(copy, self.group.view(name), name, pool)
            return final
        view = self.group.view(name, final_name)
        if view.get(name) is None:
            self._require(copy, view, final_name, pool)
            return final
        self._require(copy, view, name, pool)
        if view.get(final_name) is not None or not names.fits(self.group.vg, final_name):
            return kept
        try:
            self.group.commands.run("lvrename", "-q", "-y", self.group.vg, name, final_name)
        except CommandFailed as exc:
            return self._after_failure(exc, copy, name, final_name, pool, final=final, kept=kept)
        return final

    def _after_failure(
        self,
        exc: CommandFailed,
        copy: Volume,
        name: str,
        final_name: str,
        pool: str,
        *,
        final: VolumeUpdate,
        kept: VolumeUpdate,
    ) -> VolumeUpdate:
        """Judge by what is there now: another call may have been quicker, or something else has taken the name."""
        view = self.group.view(name, final_name)
        if view.get(name) is None:
            self._require(copy, view, final_name, pool)
            return final
        if view.get(final_name) is not None:
            return kept
        raise self.group.failed("update_migrated_volume", exc) from exc

    def _require(self, copy: Volume, view: View, name: str, pool: str) -> None:
        lv = view.get(name)
        if lv is None or not self.group.in_pool(lv, pool, copy):
            raise errors.VolumeObjectMissing(
                volume=copy.id, location=f"{self.group.path(names.object_name(copy))} in the pool {pool}"
            )
        self.group.require_size(copy, lv, view.group)
