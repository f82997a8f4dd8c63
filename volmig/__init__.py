"""volmig moves storage volumes between any two backends.

``from volmig import Engine`` is the face for programs that embed it; see :class:`volmig.engine.Engine`.
Importing the package itself loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volmig._version import __version__

if TYPE_CHECKING:
    from volmig.engine import Engine, MigrationHandle

__all__ = ["Engine", "MigrationHandle", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Engine", "MigrationHandle"):
        from volmig import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
