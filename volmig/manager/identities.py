"""Which storage a backend had, so that other storage in its place is noticed."""

from __future__ import annotations

from volmig.store import Store, VolumeQuery


class StorageIdentities:
    """The identities of backends' storage on record."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def recall(self, backend: str) -> str | None:
        """Return the identity that a backend's storage must have; None when any will do.

        A backend without volumes may be given other storage; nothing can be missed there.

        :param backend: ``host@backend``.
        """
        with self._store.reading() as view:
            if not view.list_volumes(VolumeQuery(host=backend, limit=1)):
                return None
            return view.get_storage_identity(backend)

    def on_record(self, backend: str) -> str | None:
        """Return the identity that a backend's storage had when it was set up last; None when it has never been."""
        with self._store.reading() as view:
            return view.get_storage_identity(backend)

    def remember(self, backend: str, identity: str) -> None:
        """Record the identity of a backend's storage."""
        with self._store.writing() as transaction:
            transaction.set_storage_identity(backend, identity)
