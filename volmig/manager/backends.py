"""The backends that are configured on this host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from oslo_config import cfg

from volmig import conf as configuration
from volmig import errors
from volmig.drivers.base import MigrationHost
from volmig.drivers.loader import driver_options, load_driver
from volmig.manager.backend import Backend
from volmig.manager.identities import StorageIdentities
from volmig.manager.pools import PoolInfo
from volmig.model import PoolAddress, Volume


class Backends:
    """All enabled backends by name."""

    def __init__(self, backends: dict[str, Backend], *, host: str) -> None:
        self._backends = backends
        for number, backend in enumerate(backends.values()):
            backend.earlier = tuple(backends.values())[:number]
        self.host = host

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts, *, identities: StorageIdentities | None = None) -> Backends:
        """Load the drivers of ``enabled_backends``. Nothing of the storage is touched yet.

        :param identities: where the identities of their storage are on record; None for nowhere.
        :raises volmig.errors.ConfigurationError: naming the option, file or plugin that is wrong.
        """
        return cls({name: _open_backend(conf, name, identities) for name in conf.enabled_backends}, host=conf.host)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def get(self, name: str) -> Backend:
        """Return a backend by name. :raises volmig.errors.BackendNotFound:"""
        if name not in self._backends:
            raise errors.BackendNotFound(backend=name, host=self.host, known=_named(self._backends))
        return self._backends[name]

    def at(self, address: str) -> Backend:
        """Return the backend of a pool.

        :param address: ``host@backend#pool``.
        :raises volmig.errors.AddressMalformed: when it is not one.
        :raises volmig.errors.HostNotFound: when it is on another host.
        :raises volmig.errors.BackendNotFound: when no such backend is enabled.
        """
        parsed = PoolAddress.parse(address)
        if parsed.host != self.host:
            raise errors.HostNotFound(host=parsed.host, address=address, known=self.host)
        return self.get(parsed.backend)

    def of(self, volume: Volume) -> Backend:
        """Return the backend that holds a volume."""
        return self.at(volume.host)

    def pool(self, address: str) -> PoolInfo:
        """Return a pool's present state.

        :raises volmig.errors.PoolNotFound: when the backend has no such pool.
        :raises volmig.errors.BackendDown: when the backend is out of service.
        """
        backend = self.at(address)
        pools = backend.pools()
        name = PoolAddress.parse(address).pool
        if name not in pools:
            raise errors.PoolNotFound(backend=backend.name, pool=name, known=_named(pools))
        return pools[name]

    def as_destination(self, address: str) -> MigrationHost:
        """Return how a driver is told of the pool *address* as the destination of its own migration."""
        return self.at(address).as_destination(PoolAddress.parse(address).pool)

    def pool_with_room(self, address: str, size_bytes: int) -> PoolInfo:
        """Return a pool's present state when a volume of *size_bytes* bytes can be made there.

        What is reserved there is not counted: the store does that in the transaction that makes a reservation,
        within the pool's ``limit_bytes``.

        :raises volmig.errors.DestinationReadOnly: when the pool takes no new volumes.
        :raises volmig.errors.DestinationTooSmall: when it has no room for it.
        """
        pool = self.pool(address)
        if pool.read_only:
            raise errors.DestinationReadOnly(pool=address, reason="its driver says that it takes no new volumes")
        if size_bytes > pool.limit_bytes:
            raise errors.DestinationTooSmall(pool=address, free=pool.limit_bytes, needed=size_bytes)
        return pool


def _open_backend(conf: cfg.ConfigOpts, name: str, identities: StorageIdentities | None) -> Backend:
    driver_name = configuration.driver_name(conf, name)
    plugin = load_driver(driver_name)
    options = configuration.backend_options(conf, name, driver_options(plugin), driver_name)
    try:
        driver = plugin.cls(host=conf.host, backend=name, options=options)
    except errors.VolmigError:
        raise
    except Exception as error:
        raise plugin.invalid(f"making it for backend {name!r} raised {type(error).__name__}: {error}") from error
    return Backend(driver, name=name, driver_name=driver_name, identities=identities)


def _named(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
