"""Making the storage of a backend, and taking it down, for drivers that can."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence

from volmig import errors
from volmig.manager.backend import Backend
from volmig.manager.pools import BackendInfo
from volmig.model import Phase, PoolAddress
from volmig.store import MigrationQuery, Store, VolumeQuery
from volmig.store.base import ReadTransaction

LOG = logging.getLogger(__name__)

_SHOWN = 5


def setup_storage(backend: Backend) -> BackendInfo:
    """Have a backend's driver make its storage, or find it again; return the backend as it is then.

    :raises volmig.errors.UnsupportedOperation: when the driver makes none.
    :raises volmig.errors.BackendDown: when the storage cannot be used.
    """
    backend.setup_storage()
    LOG.info("the storage of backend %s is set up", backend.name)
    return backend.info()


def teardown_storage(store: Store, backend: Backend, *, delete_data: bool) -> None:
    """Have a backend's driver let go of its storage, or delete it.

    Nothing on record may be left without its data: storage is deleted only when nothing in it is on record. It is let
    go of first and the records are read again then, when nothing more can be made in it.

    :raises volmig.errors.BackendInUse: naming what is in use or on record there.
    :raises volmig.errors.UnsupportedOperation: when the driver makes none.
    """
    _require_no_migrations(store, backend)
    if delete_data:
        _require_no_records(store, backend)
    backend.teardown_storage(delete_data=False)
    if delete_data:
        _require_no_records(store, backend)
        backend.teardown_storage(delete_data=True)
    LOG.info("the storage of backend %s is %s", backend.name, "deleted" if delete_data else "taken down")


def _require_no_migrations(store: Store, backend: Backend) -> None:
    """Refuse while a migration is under way that the storage would vanish from; one that is paused can wait."""
    with store.reading() as view:
        unfinished = [phase for phase in Phase if not phase.is_final and phase is not Phase.PAUSED]
        found = _migrations(view, _holder(view, backend), unfinished)
    if found:
        raise errors.BackendInUse(
            backend=backend.name,
            users=f"migrations under way: {_some(found)}",
            hint="Wait for them (`volmig migration watch`), pause them or cancel them, then repeat the command.",
        )


def _require_no_records(store: Store, backend: Backend) -> None:
    with store.reading() as view:
        is_in = _holder(view, backend)
        volumes = [volume.id for volume in view.list_volumes(VolumeQuery()) if is_in(volume.host)]
        retired = [each.migration_id for each in view.list_retired() if is_in(each.host)]
        migrations = _migrations(view, is_in, [phase for phase in Phase if not phase.is_final])
        reservations = [each.id for each in view.list_reservations() if is_in(each.host)]
    for what, found, hint in (
        (
            "volumes",
            volumes,
            "Move them away (`volmig volume migrate`), delete them (`volmig volume delete`), or have "
            "volmig forget them (`volmig volume unmanage`)",
        ),
        ("unfinished migrations", migrations, "Cancel them (`volmig migration cancel`) or wait for them"),
        ("old storage kept by migrations", retired, "Delete it (`volmig migration retire`)"),
        (
            "room that is reserved for",
            reservations,
            "Wait, or end what was left unfinished (`volmig migration recover`)",
        ),
    ):
        if found:
            raise errors.BackendInUse(
                backend=backend.name,
                users=f"its data is not deleted while there are {what}: {_some(found)}",
                hint=f"{hint}, then repeat the command.",
            )


def _migrations(view: ReadTransaction, is_in: Callable[[str], bool], phases: Sequence[Phase]) -> list[str]:
    found = view.list_migrations(MigrationQuery(phases=phases))
    return [each.id for each in found if is_in(each.source) or is_in(each.destination)]


def _holder(view: ReadTransaction, backend: Backend) -> Callable[[str], bool]:
    """Return what says whether a pool lies in the storage of a backend: its own pools do, and those of other backends
    that are on record with the same storage, such as thin and thick volumes of one volume group.
    """
    own = f"{backend.host}@{backend.name}"
    identity = view.get_storage_identity(own)

    @functools.cache
    def has_same_storage(address: str) -> bool:
        return address == own or (identity is not None and view.get_storage_identity(address) == identity)

    def is_in(pool: str) -> bool:
        address = PoolAddress.parse(pool)
        return has_same_storage(f"{address.host}@{address.backend}")

    return is_in


def _some(ids: Iterable[str]) -> str:
    found = sorted(set(ids))
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
