"""The suite that every implementation of :class:`volmig.store.base.Store` must pass.

Derive a test class from :class:`StoreContract` and give it one fixture::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, clock):
            store = MyStore(..., clock=clock)
            yield store
            store.close()

Each test expects a store of its own, empty. A store whose clock cannot be replaced overrides
:meth:`StoreContract.pass_time` with a real wait.

What the suite covers: transactions, volumes, migrations and their journals, who owns a migration, what others may ask
of it (to cancel, pause, resume or limit it), checkpoints of copies, room in pools, retired objects and identities of
storage. Checkpoints of 12 MiB are among its values; a server that takes them only when told to (``max_allowed_packet``
of MariaDB) is to be told.
"""

from __future__ import annotations

from volmig.testing._store_checkpoints import CheckpointContract
from volmig.testing._store_migrations import MigrationContract
from volmig.testing._store_ownership import OwnershipContract
from volmig.testing._store_requests import RequestContract
from volmig.testing._store_room import RoomContract
from volmig.testing._store_transactions import TransactionContract
from volmig.testing._store_values import (
    ManualClock,
    add_migration,
    add_volume,
    make_migration,
    make_retired,
    make_volume,
)
from volmig.testing._store_volumes import VolumeContract

__all__ = [
    "ManualClock",
    "StoreContract",
    "add_migration",
    "add_volume",
    "make_migration",
    "make_retired",
    "make_volume",
]


class StoreContract(
    TransactionContract,
    VolumeContract,
    MigrationContract,
    OwnershipContract,
    RequestContract,
    CheckpointContract,
    RoomContract,
):
    """The promises of :mod:`volmig.store.base`, as tests; the deriving class gives the fixture ``store``."""
