"""What stands in the configuration's files, whether somebody reads it or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oslo_config import cfg


def paths(conf: cfg.ConfigOpts) -> list[str]:
    """Return the files that were read, those of the directories too, in the order in which later ones win."""
    found = list(conf.config_file or [])
    for directory in conf.config_dir or []:
        found += sorted(str(path) for path in Path(directory).expanduser().glob("*.conf"))
    return found


def groups(path: str) -> dict[str, Mapping[str, Any]]:
    """Return the options that a file sets, by group."""
    sections: dict[str, dict[str, Any]] = {}
    cfg.ConfigParser(path, sections).parse()
    return dict(sections)


def same_group(one: str, other: str) -> bool:
    """Return whether two names are of one group: oslo.config passes over the case of all but ``DEFAULT``."""
    return one == other or (one.lower() == other.lower() and "DEFAULT" not in (one, other))


def sections(conf: cfg.ConfigOpts, group: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (path, options set there) of each place in the files that has the group."""
    return [(path, values) for path in paths(conf) for name, values in groups(path).items() if same_group(name, group)]
