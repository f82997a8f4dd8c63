"""Plugins are refused at load, and the error names the plugin, its distribution and what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from volmig import errors, plugins
from volmig.connectors import Connector
from volmig.drivers.base import VolumeDriver
from volmig.drivers.loader import NAMESPACE, load_driver

PROBE = """
import json, sys
from volmig import errors, plugins
from volmig.drivers.loader import NAMESPACE, load_driver

outcomes = {}
for name in json.loads(sys.argv[1]):
    try:
        plugin = load_driver(name)
    except errors.VolmigError as error:
        cause = error.__cause__
        outcomes[name] = {**error.as_dict(), "cause": type(cause).__name__ if cause else None}
    else:
        outcomes[name] = {"code": "", "cls": plugin.cls.__name__, "distribution": plugin.distribution}
outcomes[""] = {"names": plugins.names(NAMESPACE)}
print(json.dumps(outcomes))
"""

MODULE = '''
from oslo_config import cfg

from volmig.drivers.base import Capability, VolumeDriver


class Good(VolumeDriver):
    """All that is required, and no more."""

    def do_setup(self, ctxt): ...
    def check_for_setup_error(self): ...
    def get_volume_stats(self, refresh=False): ...
    def create_volume(self, volume): ...
    def delete_volume(self, volume): ...
    def extend_volume(self, volume, new_size_bytes): ...
    def volume_exists(self, volume): ...
    def initialize_connection(self, volume, connector): ...
    def terminate_connection(self, volume, connector): ...


class WithMore(Good):
    """Further arguments that have defaults, and any arguments at all, can be called as the contract says."""

    def extend_volume(self, volume, new_size_bytes, fast=False): ...
    def delete_volume(self, *args, **kwargs): ...


def function(**kwargs): ...


class Stranger: ...


class Unfinished(Good):
    create_volume = VolumeDriver.create_volume
    volume_exists = VolumeDriver.volume_exists


class TooFew(Good):
    def extend_volume(self, volume): ...


class TooMany(Good):
    def delete_volume(self, volume, force): ...


class OtherName(Good):
    def extend_volume(self, volume, new_size): ...


class KeywordOnly(Good):
    def extend_volume(self, *, volume, new_size_bytes): ...


class PositionalOnly(Good):
    def extend_volume(self, volume, new_size_bytes, /): ...


class Swapped(Good):
    def extend_volume(self, new_size_bytes, volume): ...


class MustBeNamed(Good):
    def extend_volume(self, *args, reason, **kwargs): ...


class NoMethod(Good):
    delete_volume = "soon"


class NewerMajor(Good):
    interface_version = (2, 0)


class NewerMinor(Good):
    interface_version = (1, 99)


class OldMajor(Good):
    interface_version = (0, 9)


class TextVersion(Good):
    interface_version = "1.0"


class ListCapabilities(Good):
    capabilities = [Capability.SPARSE]


class TextCapabilities(Good):
    capabilities = frozenset({"sparse"})


class EmptyRename(Good):
    capabilities = frozenset({Capability.RENAME})


class EmptyFileMode(Good):
    capabilities = frozenset({Capability.FILE_MODE})


class EmptyNative(Good):
    capabilities = frozenset({Capability.NATIVE_MIGRATION})


class HalfManage(Good):
    capabilities = frozenset({Capability.MANAGE})

    def manage_existing(self, volume, existing_ref): ...


class HalfSnapshots(Good):
    capabilities = frozenset({Capability.SNAPSHOTS})

    def create_snapshot(self, volume, snapshot_id): ...


class EmptyOnline(Good):
    capabilities = frozenset({Capability.ONLINE_MIGRATION})


class TextOptions(Good):
    @staticmethod
    def get_driver_options():
        return ["san_address"]


class NoOptions(Good):
    @staticmethod
    def get_driver_options():
        return None


class RaisingOptions(Good):
    @staticmethod
    def get_driver_options():
        raise LookupError("where are they?")


class InstanceOptions(Good):
    def get_driver_options(self):
        return ()
'''

CLASSES = [line.split()[1].split("(")[0].rstrip(":") for line in MODULE.splitlines() if line.startswith("class ")]

REFUSED: Mapping[str, str] = {
    "function": "is not a class derived from volmig.drivers.base.VolumeDriver",
    "Stranger": "is not a class derived from volmig.drivers.base.VolumeDriver",
    "number": "is not a class derived from volmig.drivers.base.VolumeDriver",
    "Unfinished": "it does not implement create_volume, volume_exists",
    "TooFew": "extend_volume takes (self, volume)",
    "TooMany": "delete_volume takes (self, volume, force)",
    "OtherName": "extend_volume takes (self, volume, new_size)",
    "KeywordOnly": "extend_volume",
    "PositionalOnly": "extend_volume",
    "Swapped": "extend_volume takes (self, new_size_bytes, volume)",
    "MustBeNamed": "extend_volume",
    "NoMethod": "delete_volume is not a method",
    "NewerMajor": "interface version (2, 0)",
    "NewerMinor": "interface version (1, 99)",
    "OldMajor": "interface version (0, 9)",
    "TextVersion": "interface version '1.0'",
    "ListCapabilities": "not a frozenset of Capability members",
    "TextCapabilities": "not a frozenset of Capability members",
    "EmptyRename": "it claims RENAME without implementing update_migrated_volume",
    "EmptyFileMode": "it claims FILE_MODE without implementing open_volume",
    "EmptyNative": "it claims NATIVE_MIGRATION without implementing migrate_volume",
    "HalfManage": "it claims MANAGE without implementing manage_existing_get_size",
    "HalfSnapshots": "it claims SNAPSHOTS without implementing delete_snapshot",
    "EmptyOnline": "it claims ONLINE_MIGRATION without implementing migrate_volume",
    "TextOptions": "'san_address', which is not an oslo.config option",
    "NoOptions": "get_driver_options raised TypeError",
    "RaisingOptions": "get_driver_options raised LookupError: where are they?",
    "InstanceOptions": "get_driver_options",
    "absent-module": "it cannot be loaded: ModuleNotFoundError",
    "absent-attribute": "it cannot be loaded: AttributeError",
    "import-error": "it cannot be loaded: ModuleNotFoundError: No module named 'surely_not_installed'",
    "syntax-error": "it cannot be loaded: SyntaxError",
    "raising": "it cannot be loaded: RuntimeError: not today",
    "exiting": "it cannot be loaded: SystemExit: no licence",
    "asserting": "it cannot be loaded: AssertionError: too old",
    "twice": "several distributions offer it",
}


def distribution(root: Path, name: str, version: str, points: Mapping[str, str]) -> None:
    """Install, in effect, a distribution that offers drivers."""
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{point} = {target}\n" for point, target in points.items())
    (info / "entry_points.txt").write_text(f"[{NAMESPACE}]\n{lines}")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Install distributions with drivers of many kinds, and load all of them in a process of its own."""
    root = tmp_path_factory.mktemp("site")
    (root / "acme_san.py").write_text(MODULE + "\n\nnumber = 7\n")
    (root / "acme_import_error.py").write_text("import surely_not_installed\n")
    (root / "acme_syntax_error.py").write_text("class Driver(\n")
    (root / "acme_raising.py").write_text("raise RuntimeError('not today')\n")
    (root / "acme_asserting.py").write_text("assert False, 'too old'\n")
    (root / "acme_unknown_name.py").write_text("import sys\nsys.absent\n")
    (root / "acme.py").write_text("import acm\n")
    (root / "acme_exiting.py").write_text("raise SystemExit('no licence')\n")
    others = {
        "function": "acme_san:function",
        "number": "acme_san:number",
        "absent-module": "acme_absent:Driver",
        "absent-attribute": "acme_san:Absent",
        "import-error": "acme_import_error:Driver",
        "syntax-error": "acme_syntax_error:Driver",
        "raising": "acme_raising:Driver",
        "exiting": "acme_exiting:Driver",
        "asserting": "acme_asserting:Driver",
        "twice": "acme_san:Good",
    }
    distribution(root, "acme-san", "1.2.3", {name: f"acme_san:{name}" for name in CLASSES} | others)
    distribution(root, "other-san", "4.5", {"twice": "acme_san:WithMore"})
    paths = [
        "acme_san:Good",
        "acme_san:Absent",
        "acme_absent:Driver",
        "acme_raising:Driver",
        "acme_import_error:Driver",
    ]
    paths += [
        "acme_unknown_name:Driver",
        "acme:Driver",
        "acme_san.inner:Driver",
        "acme_san:Stranger",
        "acme_exiting:Driver",
        ":",
        ":Good",
        "acme_san:",
        "acme_san:Good.delete_volume",
    ]
    wanted = [*CLASSES, *others, *paths, "absent", "acme_san.Good", "", "file"]
    environment = {
        **os.environ,
        # stevedore keeps what it found in files of the user, by directory and time; none of that here.
        "XDG_CACHE_HOME": str(root / "cache"),
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(wanted)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, Any]] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("name", ["Good", "WithMore"])
def test_a_sound_driver_is_loaded_and_its_distribution_known(outcomes: dict[str, Any], name: str) -> None:
    assert outcomes[name] == {"code": "", "cls": name, "distribution": "acme-san 1.2.3"}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsound_one_is_refused_by_name(outcomes: dict[str, Any], name: str) -> None:
    outcome = outcomes[name]
    assert outcome["code"] == "plugin-invalid", outcome
    assert repr(name) in outcome["message"]
    assert NAMESPACE in outcome["message"]
    assert "acme-san 1.2.3" in outcome["message"]
    assert REFUSED[name] in outcome["message"]
    assert "acme-san 1.2.3" in outcome["hint"]


def test_all_classes_of_the_table_were_tried() -> None:
    assert set(CLASSES) - {"Good", "WithMore"} <= set(REFUSED)


@pytest.mark.parametrize("name", ["import-error", "syntax-error", "raising", "absent-module", "absent-attribute"])
def test_the_cause_of_a_failed_import_is_kept(outcomes: dict[str, Any], name: str) -> None:
    assert outcomes[name]["cause"] in REFUSED[name]


def test_two_distributions_with_one_name_are_both_told(outcomes: dict[str, Any]) -> None:
    assert "acme-san 1.2.3, other-san 4.5" in outcomes["twice"]["message"]


@pytest.mark.parametrize("name", ["absent", "acme_san.Good"])
def test_a_missing_one_is_told_with_those_that_are_there(outcomes: dict[str, Any], name: str) -> None:
    outcome = outcomes[name]
    assert outcome["code"] == "plugin-not-found"
    for part in (repr(name), NAMESPACE, "Good", "fake", "file"):
        assert part in outcome["message"]


def test_all_names_are_listed_once(outcomes: dict[str, Any]) -> None:
    names = outcomes[""]["names"]
    assert names == sorted(set(names))
    assert {"file", "fake", "twice", *CLASSES} <= set(names)


@pytest.mark.parametrize(
    ("path", "code", "part"),
    [
        ("acme_san:Absent", "plugin-not-found", "'acme_san:Absent'"),
        ("acme_absent:Driver", "plugin-not-found", "'acme_absent:Driver'"),
        ("acme_raising:Driver", "plugin-invalid", "RuntimeError: not today"),
        ("acme_import_error:Driver", "plugin-invalid", "surely_not_installed"),
        ("acme_exiting:Driver", "plugin-invalid", "SystemExit"),
        ("acme_san:Stranger", "plugin-invalid", "module acme_san"),
        ("acme_unknown_name:Driver", "plugin-invalid", "AttributeError"),
        ("acme:Driver", "plugin-invalid", "No module named 'acm'"),
        ("acme_san.inner:Driver", "plugin-not-found", "'acme_san.inner:Driver'"),
        (":Good", "plugin-invalid", "':Good'"),
        (":", "plugin-invalid", "':'"),
        ("acme_san:", "plugin-not-found", "'acme_san:'"),
    ],
)
def test_a_dotted_path_that_does_not_lead_to_a_driver(
    outcomes: dict[str, Any], path: str, code: str, part: str
) -> None:
    assert outcomes[path]["code"] == code, outcomes[path]
    assert part in outcomes[path]["message"]


def test_a_dotted_path(outcomes: dict[str, Any]) -> None:
    assert outcomes["acme_san:Good"] == {"code": "", "cls": "Good", "distribution": "module acme_san"}


# --- in this process, with what is installed ------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "fake", "lvm"])
def test_the_drivers_of_volmig_itself_are_sound(name: str) -> None:
    plugin = load_driver(name)
    assert issubclass(plugin.cls, VolumeDriver)
    assert plugin.distribution.startswith("volmig ")


def test_the_connector_of_volmig_itself_is_sound() -> None:
    assert "local" in plugins.names("volmig.connectors")
    assert issubclass(plugins.load("volmig.connectors", "local", Connector).cls, Connector)  # type: ignore[type-abstract]


def test_a_namespace_without_plugins_says_so() -> None:
    with pytest.raises(errors.PluginNotFound, match="none"):
        plugins.load("volmig.absent", "any", Connector)  # type: ignore[type-abstract]


def test_a_plugin_tells_later_what_is_wrong_with_it() -> None:
    error = load_driver("file").invalid("it fell over")
    assert isinstance(error, errors.PluginInvalid)
    for part in ("'file'", NAMESPACE, "volmig", "it fell over"):
        assert part in error.message


@pytest.mark.parametrize(
    ("source", "is_sound"),
    [
        ("def connect(self, data): ...", True),
        ("def connect(self, data, retry=3): ...", True),
        ("def connect(self, *args, **kwargs): ...", True),
        ("def connect(self, *args): ...", False),
        ("def connect(self, info): ...", False),
        ("def connect(self): ...", False),
    ],
)
def test_signatures_of_any_kind_of_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, is_sound: bool
) -> None:
    name = f"connector_{abs(hash(source))}"
    body = "from volmig.connectors import Connector\n\n\nclass Own(Connector):\n"
    body += textwrap.indent(f"{source}\n\ndef disconnect(self, data): ...\n", "    ")
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)

    def load() -> plugins.Plugin[Connector]:
        return plugins.load("volmig.connectors", f"{name}:Own", Connector)  # type: ignore[type-abstract]

    if is_sound:
        assert load().cls.__name__ == "Own"
        return
    _refused(load, "connect takes")


@pytest.mark.parametrize(
    ("parameters", "is_sound"),
    [
        ("ctxt, *, delete_data=False", True),
        ("ctxt, delete_data=False", True),
        ("ctxt, **options", True),
        ("ctxt", False),
        ("ctxt, *, forced=False", False),
        ("ctxt, *, delete_data=False, forced", False),
    ],
)
def test_parameters_that_the_contract_gives_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: str, is_sound: bool
) -> None:
    name = f"driver_{abs(hash(parameters))}"
    body = "from volmig.drivers.file import FileDriver\n\n\nclass Own(FileDriver):\n"
    (tmp_path / f"{name}.py").write_text(f"{body}    def teardown_storage(self, {parameters}): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    if is_sound:
        assert load_driver(f"{name}:Own").cls.__name__ == "Own"
        return
    _refused(lambda: load_driver(f"{name}:Own"), "teardown_storage takes")


def _refused(load: Callable[[], object], part: str) -> None:
    with pytest.raises(errors.PluginInvalid) as caught:
        load()
    assert part in caught.value.message
