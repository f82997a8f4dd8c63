"""The command when the packages of the command line are there, and when they are not."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]

# None in sys.modules would make the search fail with an error of its own; absent packages are simply not found.
WITHOUT = """
import importlib.machinery, runpy, sys
names = sys.argv.pop(1).split(",")
find = importlib.machinery.PathFinder.find_spec.__func__
def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in names else find(cls, name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""
AS_MODULE = WITHOUT + "runpy.run_module('volmig.cli', run_name='__main__', alter_sys=True)"
AS_SCRIPT = WITHOUT + "from volmig.cli.entry import main; sys.exit(main())"


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
    )


@pytest.mark.parametrize("code", [AS_MODULE, AS_SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize(
    ("missing", "said"),
    [("cliff", "cliff, which is"), ("rich", "rich, which is"), ("rich,cliff", "cliff and rich, which are")],
)
@pytest.mark.parametrize("words", [["--version"], ["volume", "list"]], ids=" ".join)
def test_without_its_packages_it_says_what_to_install(code: str, missing: str, said: str, words: list[str]) -> None:
    done = run(code, missing, *words)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"volmig: The command line needs {said} not installed. [cli-not-installed]",
        "hint: Install it with: pip install 'volmig[cli]'",
    ]


@pytest.mark.parametrize("code", [AS_MODULE, AS_SCRIPT], ids=["module", "script"])
def test_with_its_packages_it_is_the_command_line(code: str) -> None:
    done = run(code, "nosuch", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("volmig ")
    assert run(code, "nosuch", "volume", "nonsense").returncode == 2


def test_the_console_script_begins_there() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].split() == ["volmig", "=", "volmig.cli.entry:main"]
