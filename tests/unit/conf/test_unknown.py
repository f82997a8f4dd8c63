"""What the files say to nobody is refused, and named."""

from __future__ import annotations

from pathlib import Path

import pytest
from oslo_config import cfg

from volmig import conf as configuration
from volmig import errors
from volmig.conf import core, database, migration, transfer

OWN = (core, database, migration, transfer)
SAMPLE = Path(configuration.__file__).parents[2] / "etc" / "volmig" / "volmig.conf.sample"


def written(directory: Path, text: str, name: str = "volmig.conf") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "option", "meant"),
    [
        ("DEFAULT", "enabled_backend", "enabled_backends"),
        ("DEFAULT", "state-path", "state_path"),
        ("database", "conection", "connection"),
        ("migration", "lease_second", "lease_seconds"),
        ("migration", "Lease_seconds", "lease_seconds"),
        ("transfer", "verfy", "verify"),
        ("Transfer", "verfy", "verify"),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(tmp_path: Path, group: str, option: str, meant: str) -> None:
    path = written(tmp_path, f"[{group}]\n{option} = 1\n")
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        configuration.load([path])
    error = caught.value
    assert error.fields["group"] in (group, group.lower())
    assert (error.fields["option"], error.fields["source"]) == (option, path)
    assert "unknown to volmig" in error.message
    assert meant in error.fields["known"].split(", ")


@pytest.mark.parametrize("module", OWN, ids=lambda module: module.GROUP)
def test_an_option_unlike_any_other_lists_all(tmp_path: Path, module: object) -> None:
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        configuration.load([written(tmp_path, f"[{module.GROUP}]\nzzz = 1\n")])  # type: ignore[attr-defined]
    assert caught.value.fields["known"].split(", ") == sorted(option.dest for option in module.OPTIONS)  # type: ignore[attr-defined]


def test_the_value_of_an_unknown_option_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        configuration.load([written(tmp_path, "[database]\npassword = s3cr3t\n")])
    assert "s3cr3t" not in str(caught.value) + caught.value.hint + repr(caught.value.fields)


def test_the_file_at_fault_is_named(tmp_path: Path) -> None:
    good = written(tmp_path, "[transfer]\nverify = none\n", "good.conf")
    bad = written(tmp_path, "[transfer]\nverfy = none\n", "bad.conf")
    for files in ([good, bad], [bad, good]):
        with pytest.raises(errors.ConfigOptionUnknown) as caught:
            configuration.load(files)
        assert caught.value.fields["source"] == bad


def test_every_option_of_volmig_s_own_is_known(tmp_path: Path) -> None:
    text = ""
    for module in OWN:
        text += f"[{module.GROUP}]\n"
        for option in module.OPTIONS:
            default = option.sample_default or option.default
            text += f"{option.dest} = {'here' if option.dest == 'host' else default if default != [] else ''}\n"
    configuration.load([written(tmp_path, text)])


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "meant"),
    [
        ("transfr", "transfer"),
        ("migrations", "migration"),
        ("Databse", "database"),
        ("default", "DEFAULT"),
        ("fsat", "fast"),
    ],
)
def test_an_unknown_group_is_refused_with_a_suggestion(tmp_path: Path, group: str, meant: str) -> None:
    text = f"[DEFAULT]\nenabled_backends = fast\n[fast]\nvolume_driver = file\n[{group}]\nhost = a\n"
    path = written(tmp_path, text)
    with pytest.raises(errors.ConfigGroupUnknown) as caught:
        configuration.load([path])
    error = caught.value
    assert (error.fields["group"], error.fields["source"]) == (group, path)
    assert f"[{group}]" in error.message
    assert meant in error.fields["known"].split(", ")


def test_a_group_unlike_any_other_lists_all(tmp_path: Path) -> None:
    text = "[DEFAULT]\nenabled_backends = fast\n[slow]\nvolume_driver = file\n[zzzzz]\na = 1\n"
    with pytest.raises(errors.ConfigGroupUnknown) as caught:
        configuration.load([written(tmp_path, text)])
    assert caught.value.fields["known"].split(", ") == sorted(["fast", "slow", *(module.GROUP for module in OWN)])


def test_a_disabled_backend_may_stay_in_the_file(tmp_path: Path) -> None:
    text = "[DEFAULT]\nenabled_backends = fast\n[fast]\nvolume_driver = file\n[slow]\nvolume_driver = file\nany = 1\n"
    assert configuration.load([written(tmp_path, text)]).enabled_backends == ["fast"]


def test_a_backend_may_be_spread_over_files(tmp_path: Path) -> None:
    one = written(tmp_path, "[slow]\nvolume_driver = file\n", "one.conf")
    two = written(tmp_path, "[slow]\nfile_directory = /srv\n", "two.conf")
    configuration.load([two, one])
    with pytest.raises(errors.ConfigGroupUnknown) as caught:
        configuration.load([two])
    assert caught.value.fields["source"] == two


def test_an_enabled_backend_without_driver_is_left_to_its_own_check(tmp_path: Path) -> None:
    conf = configuration.load([written(tmp_path, "[DEFAULT]\nenabled_backends = fast\n[fast]\nany = 1\n")])
    with pytest.raises(errors.ConfigOptionInvalid, match="volume_driver"):
        configuration.driver_name(conf, "fast")


def test_a_backend_whose_driver_the_program_gives_may_have_options_in_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[fast]\nfile_directory = /srv\n")
    configuration.load([path], overrides={"fast": {"volume_driver": "file"}})


def test_a_group_without_options_does_nothing(tmp_path: Path) -> None:
    configuration.load([written(tmp_path, "[transfr]\n[example_backend]\n")])


def test_the_sample_file_can_be_used_as_it_is() -> None:
    assert configuration.load([str(SAMPLE)]).enabled_backends == []


def test_what_oslo_config_takes_from_a_file_by_itself_is_let_through(tmp_path: Path) -> None:
    # Without a driver the source is passed over, with a line in the log.
    text = "[DEFAULT]\nconfig_source = more\n[more]\nuri = https://192.0.2.1/more\n"
    configuration.load([written(tmp_path, text)])


# --- files of directories -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cls"),
    [
        ("[transfer]\nverfy = none\n", errors.ConfigOptionUnknown),
        ("[transfr]\nverify = none\n", errors.ConfigGroupUnknown),
    ],
)
def test_files_of_the_directory_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cls: type[errors.VolmigError]
) -> None:
    directory = tmp_path / ".volmig" / "volmig.conf.d"
    directory.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(directory, text, "10-more.conf")
    with pytest.raises(cls) as caught:
        configuration.load()
    assert caught.value.fields["source"] == path


def test_a_backend_s_options_in_the_directory_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ".volmig" / "volmig.conf.d"
    directory.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(directory, "[one]\nvolume_driver = san\nsan_prot = 1\n", "10-more.conf")
    conf = configuration.load()
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        configuration.backend_options(conf, "one", (cfg.IntOpt("san_port"),), "san")
    assert caught.value.fields["source"] == path


def test_a_backend_s_group_in_other_letters_is_looked_at_too(tmp_path: Path) -> None:
    conf = configuration.load([written(tmp_path, "[One]\nvolume_driver = san\nsan_prot = 1\n")])
    assert configuration.driver_name(conf, "one") == "san"
    with pytest.raises(errors.ConfigOptionUnknown, match="san_prot"):
        configuration.backend_options(conf, "one", (cfg.IntOpt("san_port"),), "san")


def test_a_program_s_own_groups_and_options_are_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "[DEFAULT]\ndebug = true\n[oslo_messaging]\nrpc = 1\n[transfer]\nmine = 1\n")
    conf = cfg.ConfigOpts()
    conf(args=[], default_config_files=[path], default_config_dirs=[])
    configuration.register(conf)
    assert conf.transfer.verify == "digest"
