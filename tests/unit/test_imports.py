"""The core can be embedded: it loads, and needs, little."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

import pytest

NOT_FOR_THE_CORE = ("eventlet", "greenlet", "oslo_messaging", "oslo_service", "cliff", "rich", "alembic", "pytest")
MOST_DISTRIBUTIONS = 25
"""Distributions that ``pip install volmig`` may bring, itself included."""

PROBE = """
import sys
before = set(sys.modules)
{statement}
print("\\n".join(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that *statement* loads in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-I", "-W", "error::ImportWarning", "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def needed_by(name: str) -> set[str]:
    """Return the distributions that one needs without any extra, itself included."""
    found: set[str] = set()
    pending = [name]
    while pending:
        distribution = importlib.metadata.distribution(pending.pop())
        key = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if key in found:
            continue
        found.add(key)
        for requirement in distribution.requires or ():
            text, _, marker = requirement.partition(";")
            if "extra" in marker or not _applies(marker):
                continue
            matched = re.match(r"[A-Za-z0-9._-]+", text.strip())
            assert matched is not None, requirement
            pending.append(matched[0])
    return found


def _applies(marker: str) -> bool:
    """Judge the markers that occur among the dependencies: versions of Python, and other systems."""
    version = re.search(r"python_version\s*(<=|<|>=|>)\s*[\"']([\d.]+)[\"']", marker)
    if version is not None:
        wanted = tuple(int(part) for part in version[2].split("."))
        present = sys.version_info[: len(wanted)]
        return {"<": present < wanted, "<=": present <= wanted, ">": present > wanted, ">=": present >= wanted}[
            version[1]
        ]
    return not re.search(r"win32|Windows|Darwin|PyPy|pypy", marker)


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = loaded_by("import volmig; assert volmig.__version__")
    assert "volmig" in loaded
    assert not loaded & {*NOT_FOR_THE_CORE, "oslo_config", "stevedore", "sqlalchemy"}


@pytest.mark.parametrize(
    "statement",
    [
        "from volmig import Engine; assert isinstance(Engine, type)",
        "import volmig.migration.runner",
        "import volmig.transfer",
        "import volmig.drivers.file, volmig.drivers.fake",
        "import volmig.conf",
    ],
)
def test_the_core_loads_no_service_no_command_line_and_no_green_threads(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "volmig" in loaded
    assert not loaded & set(NOT_FOR_THE_CORE)


def test_an_engine_with_another_store_needs_no_database_library() -> None:
    assert "sqlalchemy" not in loaded_by("from volmig import Engine; Engine")


@pytest.mark.parametrize("statement", ["import volmig.transfer", "import volmig.errors, volmig.model"])
def test_a_layer_serves_alone(statement: str) -> None:
    assert not loaded_by(statement) & {"oslo_config", "sqlalchemy"}


def test_the_core_needs_few_distributions() -> None:
    needed = needed_by("volmig")
    assert {"volmig", "stevedore", "oslo-config", "sqlalchemy", "alembic"} <= needed
    assert len(needed) < MOST_DISTRIBUTIONS, sorted(needed)
    assert not needed & {"eventlet", "oslo-messaging", "oslo-service", "cliff", "rich", "pytest"}
