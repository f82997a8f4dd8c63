"""The face of volmig for programs that embed it."""

from volmig.engine.engine import Engine
from volmig.engine.handle import MigrationEvent, MigrationHandle
from volmig.manager.pools import BackendInfo, PoolInfo

__all__ = ["BackendInfo", "Engine", "MigrationEvent", "MigrationHandle", "PoolInfo"]
