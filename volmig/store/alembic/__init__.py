"""Scripts that upgrade the tables, run by :mod:`volmig.store.upgrade`."""
