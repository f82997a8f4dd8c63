"""Every store in the tree keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from volmig import errors
from volmig.store import Store
from volmig.store.sql import SqlStore
from volmig.testing.memory_store import MemoryStore
from volmig.testing.store_contract import ManualClock, StoreContract, add_volume, make_volume


class OwnStoreContract(StoreContract):
    """What volmig's own stores promise beyond the protocol."""

    def test_transaction_inside_a_transaction_is_refused(self, store: Store) -> None:
        for outer in (store.reading, store.writing):
            for inner in (store.reading, store.writing):
                with outer(), pytest.raises(errors.InternalError, match="inside another"), inner():
                    pass
        add_volume(store)

    def test_transaction_after_its_end_is_refused(self, store: Store) -> None:
        with store.writing() as writer:
            pass
        with pytest.raises(errors.InternalError, match="after its end"):
            writer.add_volume(make_volume())
        with store.reading() as reader:
            assert list(reader.list_volumes()) == []
        with pytest.raises(errors.InternalError, match="after its end"):
            reader.list_volumes()

    def test_closed_store_is_refused(self, store: Store) -> None:
        store.close()
        store.close()
        with pytest.raises(errors.InternalError, match="closed"), store.reading():
            pass
        with pytest.raises(errors.InternalError, match="closed"), store.writing():
            pass


class TestMemoryStore(OwnStoreContract):
    @pytest.fixture
    def store(self, clock: ManualClock) -> Iterator[Store]:
        store = MemoryStore(clock=clock)
        yield store
        store.close()

    def test_label_warns(self, store: MemoryStore) -> None:
        assert "keeps nothing" in repr(store)


class TestSqliteFile(OwnStoreContract):
    @pytest.fixture
    def store(self, clock: ManualClock, tmp_path: Path) -> Iterator[Store]:
        store = SqlStore(f"sqlite:///{tmp_path}/volmig.db", clock=clock)
        yield store
        store.close()


class TestSqliteMemory(OwnStoreContract):
    @pytest.fixture
    def store(self, clock: ManualClock) -> Iterator[Store]:
        store = SqlStore("sqlite://", clock=clock)
        yield store
        store.close()
