"""Refusing what a configuration file says to nobody, which is a mistake in writing more often than not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Protocol

from oslo_config import cfg

from volmig import errors
from volmig.conf import files

_READ_BY_OSLO = ("config_source",)
"""Options in ``[DEFAULT]`` that oslo.config itself takes from a file."""


class Group(Protocol):
    """A module that describes a group of volmig's own."""

    @property
    def GROUP(self) -> str:  # noqa: N802 - the name in the modules
        """Its name."""

    @property
    def OPTIONS(self) -> Sequence[cfg.Opt]:  # noqa: N802
        """Its options."""


def check_names(names: Iterable[str], options: Sequence[cfg.Opt], *, group: str, source: str, reader: str) -> None:
    """Refuse names of options that are none of *options*.

    :param reader: who would read them, for the error.
    :raises volmig.errors.ConfigOptionUnknown:
    """
    # Only the name with underscores is read: one written with dashes in a file would be passed over in silence.
    known = {option.dest for option in options}
    old = {deprecated.name for option in options for deprecated in option.deprecated_opts}
    for name in names:
        if name not in known | old:
            raise errors.ConfigOptionUnknown(
                option=name, group=group, source=source, reader=reader, known=_near(name, known, cutoff=0.5)
            )


def check_options(conf: cfg.ConfigOpts, own: Sequence[Group]) -> None:
    """Refuse unknown options that the files set in volmig's own groups.

    :raises volmig.errors.ConfigOptionUnknown:
    """
    for module in own:
        for path, values in files.sections(conf, module.GROUP):
            passed_on = _READ_BY_OSLO if module.GROUP == "DEFAULT" else ()
            names = [name for name in values if name not in passed_on]
            check_names(names, module.OPTIONS, group=module.GROUP, source=path, reader="volmig")


def check_groups(conf: cfg.ConfigOpts, own: Sequence[Group], backends: Iterable[str]) -> None:
    """Refuse groups in the files that are neither volmig's own nor those of backends.

    A group with a ``volume_driver``, in any of the files, is a backend's, which may be disabled; one without any
    option does nothing.

    :param backends: names of the backends that are in use.
    :raises volmig.errors.ConfigGroupUnknown:
    """
    found = [(path, name, values) for path in files.paths(conf) for name, values in files.groups(path).items()]
    used = {module.GROUP for module in own} | set(backends)
    disabled = {name for _, name, values in found if "volume_driver" in values}
    known = used | disabled | set(conf.config_source)
    for path, name, values in found:
        if values and not any(files.same_group(name, other) for other in known):
            raise errors.ConfigGroupUnknown(
                group=name,
                source=path,
                reason="enabled_backends does not name it, and it has no volume_driver",
                known=_near(name, used | disabled, cutoff=0.6),
            )


def _near(name: str, known: Iterable[str], *, cutoff: float) -> str:
    """Return those of *known* that *name* may have been meant for; all when none is like it."""
    names = sorted(known)
    by_lower_case = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(name.lower(), list(by_lower_case), n=3, cutoff=cutoff)
    return ", ".join([by_lower_case[lower] for lower in near] or names)
