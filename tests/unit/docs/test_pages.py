"""What the pages say by hand agrees with the code."""

from __future__ import annotations

import configparser
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from volmigdoc import commands

from volmig import Engine, conf, errors, plugins
from volmig.cli.app import VolmigApp
from volmig.drivers import VolumeDriver
from volmig.model import Phase
from volmig.testing.vm.__main__ import parser as vm_parser

from .places import NOTES, PAGES

_TEXTS = {path.name: path.read_text(encoding="utf-8") for path in [*PAGES.glob("*.rst"), *NOTES.glob("*.yaml")]}
_CALL = re.compile(r"(?:``|^ +)volmig ([a-z]+(?: [a-z]+)?\b[^`\n]*)", re.MULTILINE)


def _calls():
    """Return (place, words) of every command that a text or an error's hint tells the reader to run."""
    found = [(name, call) for name, text in _TEXTS.items() for call in _CALL.findall(text)]
    for cls in errors.catalogue():
        found += [(cls.code, call) for call in re.findall(r"`volmig ([a-z][^`]*)`", cls.hint_template)]
    return [(name, call.split()) for name, call in found]


def _command(words, known):
    """Return the command that words call; None when there is none."""
    return next((key for count in (3, 2, 1) if (key := " ".join(words[:count])) in known), None)


def test_commands_that_are_named_exist():
    known = commands.commands()
    unknown = [
        (name, " ".join(words)) for name, words in _calls() if _command(words, known) is None and words[0] != "help"
    ]
    assert len(_calls()) > 20
    assert unknown == []


def test_options_of_commands_that_are_named_exist():
    known = commands.commands()
    general = {option for action in VolmigApp().parser._actions for option in action.option_strings}
    for name, words in _calls():
        command = _command(words, known)
        if command is not None:
            parser = commands._parser(command, known[command])
            taken = {option for action in parser._actions for option in action.option_strings} | general
            assert {word for word in words if word.startswith("--")} <= taken, (name, words)


def test_options_in_the_text_are_of_some_command():
    parsers = [commands._parser(name, cls) for name, cls in commands.commands().items()]
    parsers += [VolmigApp().parser, vm_parser()]
    taken = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    # Of other programs that the pages name: qemu-nbd, and pytest with volmig's tests.
    taken |= {"--cache", "--long"}
    for name, text in _TEXTS.items():
        assert set(re.findall(r"``(--[a-z-]+)", text)) <= taken | {"--help"}, name


@pytest.mark.parametrize("page", ["quickstart.rst", "configuration.rst"])
def test_configurations_that_are_shown_give_the_pools_that_are_named(page, tmp_path):
    block = re.search(r"code-block:: ini\n\n((?: +.*\n|\n)+)", _TEXTS[page])[1]
    (file := tmp_path / "volmig.conf").write_text(re.sub(r"= /(home/me|srv)", f"= {tmp_path}", textwrap.dedent(block)))
    for directory in re.findall(r"file_directory = (.*)", file.read_text()):
        Path(directory).mkdir(parents=True)
    config = conf.load([str(file)], overrides={"DEFAULT": {"state_path": str(tmp_path / "state")}})
    with Engine(config) as engine:
        pools = {pool.address for pool in engine.list_pools()}
    named = set(re.findall(r"\b\w+@\w+#\w+", _TEXTS[page])) - {"host@backend#pool"}
    assert named <= pools
    assert len(pools) == {"quickstart.rst": 2, "configuration.rst": 3}[page]


def test_driver_guide_names_the_required_methods():
    told = re.search(r"\*\*Nine methods are required:\*\*(.*?)\.", _TEXTS["drivers.rst"], re.DOTALL)
    assert set(re.findall(r"``([\w-]+)``", told[1])) == VolumeDriver.__abstractmethods__
    assert len(VolumeDriver.__abstractmethods__) == 9


@pytest.mark.parametrize("method", ["migrate_volume", "update_migrated_volume"])
def test_driver_guide_has_the_signatures(method):
    arguments = list(inspect.signature(getattr(VolumeDriver, method)).parameters)[1:]
    text = " ".join(_TEXTS["drivers.rst"].split())
    assert f"``{method}({', '.join(arguments)})``" in text


@pytest.mark.parametrize(
    ("label", "namespace"),
    [
        ("Drivers", "volmig.drivers"),
        ("Connectors", "volmig.connectors"),
        ("Transfer engines", "volmig.transfer_engines"),
    ],
)
def test_limits_name_every_plugin_that_is_brought(label, namespace):
    told = re.search(rf"\*\*{label}:\*\* (.*?)\.", _TEXTS["operate.rst"], re.DOTALL)
    assert sorted(re.findall(r"``([\w-]+)``", told[1])) == plugins.names(namespace)


def test_codes_that_are_referred_to_exist():
    codes = {cls.code for cls in errors.catalogue()}
    for name, text in _TEXTS.items():
        assert set(re.findall(r"<error-([a-z-]+)>", text)) <= codes, name


def test_safety_tells_of_every_phase_what_a_crash_leads_to():
    told = _TEXTS["safety.rst"].split("What a crash leads to")[1].split("Other requests")[0]
    cells = re.findall(r"^   \* - (.*)$", told, re.MULTILINE)[1:]
    named = [phase for cell in cells for phase in re.findall(r"``(\w+)``", cell)]
    assert sorted(named) == sorted(phase.value for phase in Phase)


def test_defaults_that_safety_names_are_the_defaults():
    config = conf.load([], overrides={"DEFAULT": {"enabled_backends": []}})
    for name, value in re.findall(r"``(\w+)`` \(([\d.]+)\)", _TEXTS["safety.rst"]):
        assert getattr(config.migration, name) == float(value), name


def test_the_unit_of_systemd_can_be_parsed_and_runs_a_command_that_exists():
    block = re.search(r"code-block:: ini\n\n((?:     .*\n|\n)+)", _TEXTS["safety.rst"])[1]
    unit = configparser.ConfigParser(strict=True)
    unit.optionxform = str
    unit.read_string(textwrap.dedent(block))
    assert unit.sections() == ["Unit", "Service", "Install"]
    _, *words = unit["Service"]["ExecStart"].split()
    assert _command(words, commands.commands()) == "migration recover"
    assert words[2:] == ["--keep"]


def test_every_page_is_in_the_index():
    listed = set(re.findall(r"^   ([a-z-]+)$", _TEXTS["index.rst"], re.MULTILINE))
    assert listed == {path.stem for path in PAGES.glob("*.rst")} - {"index"}
