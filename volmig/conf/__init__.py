"""Configuration: what can be set, and reading it.

Nothing is global: :func:`load` returns a ``ConfigOpts`` that is handed on as an argument. Each module here describes
one group. A backend's group also holds the options of its driver, which are registered when the driver is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from oslo_config import cfg

from volmig import errors
from volmig.conf import backend, core, database, files, migration, transfer, unknown

__all__ = ["BackendOptions", "backend_options", "load", "register"]

_PROGRAM = "given by the program"

BackendOptions = Mapping[str, Any]

_GROUPS = (core, database, migration, transfer)

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?")
"""What the host or the backend may be in an address; as :class:`volmig.model.PoolAddress` has it."""


class Configuration(cfg.ConfigOpts):
    """The options read by :func:`load`, with the values for backends that the program itself gave."""

    def __init__(self) -> None:
        super().__init__()
        self.backend_values: dict[str, Mapping[str, Any]] = {}
        """By backend and option; applied when the backend's driver, which knows the options, is loaded."""


def load(
    config_files: Sequence[str] | None = None,
    *,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Configuration:
    """Read the configuration, check each value, and return it.

    :param config_files: the files, later ones winning; None for the usual places (``~/.volmig``, ``~``,
        ``/etc/volmig``, ``/etc``: ``volmig.conf`` and ``volmig.conf.d``), of which none need exist.
    :param overrides: values by group and option, which win over all files.
    :raises volmig.errors.ConfigFileUnreadable: when a file is missing or malformed.
    :raises volmig.errors.ConfigOptionInvalid: when a value is not usable.
    :raises volmig.errors.ConfigOptionUnknown: when a file sets an option in a group of volmig's own that it does not
        know; the options of backends are checked when their drivers are loaded.
    :raises volmig.errors.ConfigGroupUnknown: when a file has a group that is neither volmig's nor a backend's, be
        it an enabled one or not.
    """
    conf = Configuration()
    try:
        if config_files is None:
            conf(args=[], project="volmig")
        else:
            conf(args=[], project="volmig", default_config_files=list(config_files), default_config_dirs=[])
    except cfg.ConfigFilesNotFoundError as error:
        raise errors.ConfigFileUnreadable(path=", ".join(error.config_files), reason="there is no such file") from error
    except cfg.ConfigFilesPermissionDeniedError as error:
        raise errors.ConfigFileUnreadable(
            path=", ".join(error.config_files), reason="permission to read it is denied"
        ) from error
    except cfg.ConfigFileParseError as error:
        # Without the line itself and without the cause, which has it too: a password may stand in it.
        raise errors.ConfigFileUnreadable(path=error.config_file, reason=_without_line(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigFileUnreadable(path=", ".join(config_files or ["volmig.conf"]), reason=error) from error
    register(conf)
    for group, values in (overrides or {}).items():
        if group in {module.GROUP for module in _GROUPS}:
            _override(conf, group, values)
        else:
            conf.backend_values[group] = dict(values)
    unknown.check_options(conf, _GROUPS)
    for module in _GROUPS:
        _check(conf, module.GROUP, module.OPTIONS)
    _check_together(conf)
    unknown.check_groups(conf, _GROUPS, (*conf.enabled_backends, *conf.backend_values))
    return conf


def register(conf: cfg.ConfigOpts) -> None:
    """Register volmig's options, other than those of backends, on a program's own ``ConfigOpts``."""
    for module in _GROUPS:
        conf.register_opts(module.OPTIONS, group=None if module.GROUP == "DEFAULT" else module.GROUP)


def backend_options(conf: cfg.ConfigOpts, name: str, driver_options: Sequence[cfg.Opt], driver: str) -> BackendOptions:
    """Return the checked values of a backend's group, by option name.

    :param driver_options: what the driver's ``get_driver_options`` returned.
    :param driver: name of the driver, for errors.
    :raises volmig.errors.ConfigOptionInvalid: when a value is not usable.
    :raises volmig.errors.ConfigOptionUnknown: when a file sets an option that nobody reads.
    """
    options = (*backend.OPTIONS, *driver_options)
    for option in options:
        try:
            conf.register_opt(option, group=name)
        except cfg.DuplicateOptError as error:
            raise errors.ConfigOptionInvalid(
                option=option.name,
                group=name,
                source=f"option of the driver {driver!r}",
                reason="another part of the program has an option of that name with another meaning",
            ) from error
    given = conf.backend_values.get(name, {}) if isinstance(conf, Configuration) else {}
    for path, values in (*files.sections(conf, name), (_PROGRAM, given)):
        unknown.check_names(values, options, group=name, source=path, reader=f"the driver {driver!r}")
    _override(conf, name, given)
    _check(conf, name, options)
    group = conf[name]
    return {option.dest: group[option.dest] for option in options}


def driver_name(conf: cfg.ConfigOpts, name: str) -> str:
    """Return the driver that a backend's group names.

    :raises volmig.errors.ConfigOptionInvalid: when the group or its ``volume_driver`` is missing.
    """
    conf.register_opts(backend.OPTIONS, group=name)
    if isinstance(conf, Configuration):
        given = conf.backend_values.get(name, {})
        _override(conf, name, {key: value for key, value in given.items() if key == "volume_driver"})
    driver = conf[name].volume_driver
    if not driver:
        raise errors.ConfigOptionInvalid(
            option="volume_driver",
            group=name,
            source=", ".join(conf.config_file or []) or "no configuration file",
            reason=f"it is missing, though enabled_backends names {name!r}",
        )
    return str(driver)


def option_source(conf: cfg.ConfigOpts, group: str, option: str) -> str:
    """Return the file that sets an option, or words that say that none does."""
    found = [
        path for path, values in files.sections(conf, group) if option in values or option.replace("_", "-") in values
    ]
    return found[-1] if found else "not set in any configuration file"


def _override(conf: cfg.ConfigOpts, group: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        try:
            conf.set_override(name, value, group=None if group == "DEFAULT" else group)
        except (ValueError, cfg.NoSuchOptError) as error:
            raise errors.ConfigOptionInvalid(option=name, group=group, source=_PROGRAM, reason=error) from error


def _check(conf: cfg.ConfigOpts, group: str, options: Sequence[cfg.Opt]) -> None:
    values = conf if group == "DEFAULT" else conf[group]
    for option in options:
        try:
            _check_value(option, values[option.dest])
        except (ValueError, cfg.Error) as error:
            raise errors.ConfigOptionInvalid(
                option=option.name,
                group=group,
                source=option_source(conf, group, option.dest),
                # A secret's value must not be shown, and it may be part of the reason.
                reason="its value is malformed" if option.secret else _reason(error),
            ) from (None if option.secret else error)


def _check_value(option: cfg.Opt, value: object) -> None:
    """Refuse what oslo.config lets through. :raises ValueError:"""
    if value is None and option.default is not None:
        raise ValueError("it is empty")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")


def _without_line(error: cfg.ConfigFileParseError) -> str:
    """Return what is wrong, and in which line."""
    return re.sub(r": (['\"]).*\1$", "", str(error.msg), flags=re.DOTALL)


def _reason(error: Exception) -> str:
    return re.sub(r"^Value for option .*? is not valid: ", "", str(error))


def _check_together(conf: cfg.ConfigOpts) -> None:
    """Refuse values that are sound each, but contradict one another."""

    def refuse(group: str, option: str, reason: str) -> errors.ConfigOptionInvalid:
        return errors.ConfigOptionInvalid(
            option=option, group=group, source=option_source(conf, group, option), reason=reason
        )

    if conf.migration.heartbeat_seconds * 3 > conf.migration.lease_seconds:
        raise refuse(
            "migration",
            "heartbeat_seconds",
            f"{conf.migration.heartbeat_seconds:g} is more than a third of lease_seconds "
            f"({conf.migration.lease_seconds:g})",
        )
    if not _LABEL.fullmatch(conf.host):
        raise refuse("DEFAULT", "host", f"{conf.host!r} cannot be part of an address host@backend#pool")
    backends = conf.enabled_backends
    for name in backends:
        if backends.count(name) > 1:
            raise refuse("DEFAULT", "enabled_backends", f"it names {name!r} more than once")
        if name in {module.GROUP for module in _GROUPS}:
            raise refuse("DEFAULT", "enabled_backends", f"{name!r} is the name of a group of volmig's own")
        if not _LABEL.fullmatch(name):
            raise refuse("DEFAULT", "enabled_backends", f"{name!r} cannot be part of an address host@backend#pool")
