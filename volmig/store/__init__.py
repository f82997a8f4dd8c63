"""The record of volumes and migrations: a protocol, and what an implementation of it has to keep.

volmig's own implementation is :class:`volmig.store.sql.SqlStore`; importing this package does not load it.
"""

from volmig.store.base import MigrationQuery, ReadTransaction, Store, VolumeQuery, WriteTransaction

__all__ = ["MigrationQuery", "ReadTransaction", "Store", "VolumeQuery", "WriteTransaction"]
