"""Loading a backend's driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from oslo_config import cfg

from volmig import plugins
from volmig.drivers.base import Capability, VolumeDriver

NAMESPACE: Final = "volmig.drivers"

_METHODS_OF: Final[dict[Capability, tuple[str, ...]]] = {
    Capability.NATIVE_MIGRATION: ("migrate_volume",),
    Capability.RENAME: ("update_migrated_volume",),
    Capability.FILE_MODE: ("open_volume",),
    Capability.MANAGE: ("manage_existing_get_size", "manage_existing", "unmanage"),
    Capability.SNAPSHOTS: ("create_snapshot", "delete_snapshot"),
    Capability.LIST: ("list_objects",),
    Capability.ONLINE_MIGRATION: ("migrate_volume",),
}


def load_driver(name: str) -> plugins.Plugin[VolumeDriver]:
    """Return the driver class *name*, checked.

    Beyond what every plugin is checked for, its options must be oslo.config options, and a capability that it
    claims must come with the methods that fulfil it.

    :param name: name of an entry point in ``volmig.drivers``, or ``module.path:ClassName``.
    :raises volmig.errors.PluginNotFound: when there is none.
    :raises volmig.errors.PluginInvalid: when it does not fulfil the contract.
    """
    # The base is abstract on purpose: what derives from it is checked to be concrete.
    plugin = plugins.load(NAMESPACE, name, VolumeDriver)  # type: ignore[type-abstract]
    _check_capabilities(plugin)
    driver_options(plugin)
    return plugin


def driver_options(plugin: plugins.Plugin[VolumeDriver]) -> Sequence[cfg.Opt]:
    """Return the options of a driver. :raises volmig.errors.PluginInvalid: when they are none."""
    try:
        options = tuple(plugin.cls.get_driver_options())
    except Exception as error:
        raise plugin.invalid(f"get_driver_options raised {type(error).__name__}: {error}") from error
    for option in options:
        if not isinstance(option, cfg.Opt):
            raise plugin.invalid(f"get_driver_options gave {option!r}, which is not an oslo.config option")
    return options


def _check_capabilities(plugin: plugins.Plugin[VolumeDriver]) -> None:
    claimed: Any = plugin.cls.capabilities
    if not isinstance(claimed, frozenset) or not all(isinstance(member, Capability) for member in claimed):
        raise plugin.invalid(f"capabilities is {claimed!r}, not a frozenset of Capability members")
    for capability in claimed:
        for method in _METHODS_OF.get(capability, ()):
            if getattr(plugin.cls, method) is getattr(VolumeDriver, method):
                raise plugin.invalid(f"it claims {capability.name} without implementing {method}")
