"""Reading the configuration: every mistake is refused, naming the option, its group and its file."""

from __future__ import annotations

import pickle
import traceback
import unittest
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ddt
import pytest
from oslo_config import cfg

from volmig import conf as configuration
from volmig import errors
from volmig.conf import backend, core, database, migration, opts, transfer

SECRET = "s3cr3t-p4ssw0rd"  # noqa: S105 - made up, and looked for in what is shown


def written(directory: Path, text: str, name: str = "volmig.conf") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


def refusal(directory: Path, text: str) -> errors.ConfigOptionInvalid:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        configuration.load([written(directory, text)])
    return caught.value


# --- files --------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.conf")
    with pytest.raises(errors.ConfigFileUnreadable) as caught:
        configuration.load([path])
    assert path in caught.value.message
    assert "no such file" in caught.value.message


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigFileUnreadable) as caught:
        configuration.load([str(tmp_path)])
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00 not text",
        b"an option before any group\n",
        b"[DEFAULT\nhost = a\n",
        b"[DEFAULT]\nhost\n",
        b"[DEFAULT]\n = a\n",
        b"[]\nhost = a\n",
    ],
    ids=["garbage", "no-value", "no-bracket", "no-equals", "no-name", "no-group"],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "volmig.conf"
    path.write_bytes(content)
    with pytest.raises(errors.ConfigFileUnreadable) as caught:
        configuration.load([str(path)])
    assert str(path) in caught.value.message


def test_of_two_files_only_the_malformed_one_is_named(tmp_path: Path) -> None:
    good = written(tmp_path, "[DEFAULT]\nhost = a\n", "good.conf")
    bad = written(tmp_path, "[DEFAULT\n", "bad.conf")
    with pytest.raises(errors.ConfigFileUnreadable) as caught:
        configuration.load([good, bad])
    assert bad in caught.value.message
    assert good not in caught.value.message


def test_without_files_the_defaults_hold() -> None:
    conf = configuration.load([])
    assert conf.enabled_backends == []
    assert conf.transfer.verify == "digest"
    assert conf.migration.max_concurrent_migrations == 8


def test_a_later_file_wins_and_leaves_the_rest(tmp_path: Path) -> None:
    one = written(tmp_path, "[DEFAULT]\nhost = one\n[transfer]\nverify = none\n", "one.conf")
    two = written(tmp_path, "[DEFAULT]\nhost = two\n", "two.conf")
    conf = configuration.load([one, two])
    assert (conf.host, conf.transfer.verify) == ("two", "none")
    assert configuration.load([two, one]).host == "one"


def test_the_later_file_is_named_when_its_value_is_wrong(tmp_path: Path) -> None:
    one = written(tmp_path, "[migration]\nlease_seconds = 60\n", "one.conf")
    two = written(tmp_path, "[migration]\nlease_seconds = soon\n", "two.conf")
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        configuration.load([one, two])
    assert caught.value.fields["source"] == two


def test_overrides_win_over_files(tmp_path: Path) -> None:
    path = written(tmp_path, "[DEFAULT]\nhost = file\n[transfer]\nchunk_bytes = 65536\n")
    conf = configuration.load([path], overrides={"DEFAULT": {"host": "program"}, "transfer": {"chunk_bytes": 131072}})
    assert (conf.host, conf.transfer.chunk_bytes) == ("program", 131072)


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        ({"migration": {"lease_seconds": "long"}}, "lease_seconds"),
        ({"migration": {"lease_seconds": 0.1}}, "lease_seconds"),
        ({"transfer": {"verify": "trust"}}, "verify"),
        ({"transfer": {"no_such_option": 1}}, "no_such_option"),
    ],
)
def test_wrong_overrides_are_refused(overrides: Mapping[str, Mapping[str, Any]], option: str) -> None:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        configuration.load([], overrides=overrides)
    (group,) = overrides
    assert (caught.value.fields["option"], caught.value.fields["group"]) == (option, group)


def test_nothing_is_global(tmp_path: Path) -> None:
    one = configuration.load([written(tmp_path, "[DEFAULT]\nhost = one\n", "one.conf")])
    two = configuration.load([])
    assert one.host == "one"
    assert two.host != "one"
    assert "enabled_backends" not in cfg.CONF


# --- values -------------------------------------------------------------------------------------


def out_of_bounds() -> Iterator[Any]:
    for module in (core, database, migration, transfer):
        for option in module.OPTIONS:
            kind = option.type
            if isinstance(option, cfg.IntOpt | cfg.FloatOpt):
                values = {"malformed": "many", "empty": "", "nan": "nan", "infinite": "inf"}
                if kind.min is not None:
                    values["below"] = str(kind.min - 1)
                if kind.max is not None:
                    values["above"] = str(kind.max + 1)
            elif getattr(kind, "choices", None):
                values = {"no-choice": "some-other"}
            else:
                continue
            for what, value in values.items():
                yield pytest.param(module.GROUP, option.name, value, id=f"{module.GROUP}-{option.name}-{what}")


@pytest.mark.parametrize(("group", "option", "value"), list(out_of_bounds()))
def test_a_value_out_of_bounds_names_option_group_and_file(tmp_path: Path, group: str, option: str, value: str) -> None:
    error = refusal(tmp_path, f"[{group}]\n{option} = {value}\n")
    assert error.fields["option"] == option
    assert error.fields["group"] == group
    assert error.fields["source"] == str(tmp_path / "volmig.conf")
    for part in (option, f"[{group}]", str(tmp_path / "volmig.conf")):
        assert part in error.message


def test_numbers_have_bounds_and_all_options_say_what_they_are() -> None:
    for _, options in opts.list_opts():
        for option in options:
            assert option.help, option.name
            if isinstance(option, cfg.IntOpt | cfg.FloatOpt):
                assert option.type.min is not None, option.name


@ddt.ddt
class Contradictions(unittest.TestCase):
    def load(self, **groups: Mapping[str, Any]) -> None:
        configuration.load([], overrides=groups)

    @ddt.data((1.0, 2.0), (10.0, 29.9), (60.0, 30.0))
    @ddt.unpack
    def test_a_heartbeat_must_fit_thrice_into_the_lease(self, heartbeat: float, lease: float) -> None:
        with pytest.raises(errors.ConfigOptionInvalid) as caught:
            self.load(migration={"heartbeat_seconds": heartbeat, "lease_seconds": lease})
        assert caught.value.fields["option"] == "heartbeat_seconds"
        assert "lease_seconds" in caught.value.message

    @ddt.data((0.5, 2.0), (10.0, 30.0))
    @ddt.unpack
    def test_a_heartbeat_that_fits(self, heartbeat: float, lease: float) -> None:
        self.load(migration={"heartbeat_seconds": heartbeat, "lease_seconds": lease})

    @ddt.data(
        (["a", "b", "a"], "more than once"),
        (["migration"], "group"),
        (["transfer"], "group"),
        (["database"], "group"),
        (["DEFAULT"], "group"),
        (["a@b"], "address"),
        (["a#b"], "address"),
        (["a b"], "address"),
        (["-a"], "address"),
        (["a."], "address"),
        ([""], "address"),
        (["../a"], "address"),
    )
    @ddt.unpack
    def test_names_of_backends(self, names: list[str], reason: str) -> None:
        with pytest.raises(errors.ConfigOptionInvalid) as caught:
            self.load(DEFAULT={"enabled_backends": names})
        assert caught.value.fields["option"] == "enabled_backends"
        assert reason in str(caught.value.fields["reason"])


@pytest.mark.parametrize("host", ["", "my host", "a@b", "a#b", "-a", "a/b"])
def test_a_host_that_cannot_be_in_an_address(tmp_path: Path, host: str) -> None:
    error = refusal(tmp_path, f"[DEFAULT]\nhost = {host}\n")
    assert error.fields["option"] == "host"
    assert error.fields["source"] == str(tmp_path / "volmig.conf")


def test_a_contradiction_names_the_file(tmp_path: Path) -> None:
    error = refusal(tmp_path, "[migration]\nheartbeat_seconds = 2\nlease_seconds = 3\n")
    assert error.fields["source"] == str(tmp_path / "volmig.conf")
    error = refusal(tmp_path, "[DEFAULT]\nenabled_backends = a, a\n")
    assert error.fields["source"] == str(tmp_path / "volmig.conf")


# --- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"[database]\nconnection = postgresql://user:{SECRET}@h/$absent_option\n",
        f"[database]\nconnection = postgresql://user:{SECRET}@h/${{absent_option}}\n",
        f"[database]\nconnection = postgresql://user:{SECRET}@h/db\nbusy_timeout_seconds = never\n",
        f"[database]\nconnection = postgresql://user:{SECRET}@h/db\n[migration]\nlease_seconds = 0\n",
    ],
    ids=["unknown-variable", "unknown-variable-braced", "other-option", "other-group"],
)
def test_secrets_are_in_no_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(errors.VolmigError) as caught:
        configuration.load([written(tmp_path, text)])
    error = caught.value
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in error.message + error.hint + repr(error.fields)
    assert SECRET.encode() not in pickle.dumps(error)


@pytest.mark.parametrize("line", [f"san_password {SECRET}", f"san_password '{SECRET}", f" = {SECRET}"])
def test_a_secret_in_a_malformed_line_is_not_shown(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, f"[one]\n{line}\n")
    with pytest.raises(errors.ConfigFileUnreadable) as caught:
        configuration.load([path])
    assert "volmig.conf:2" in caught.value.message
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# --- backends -----------------------------------------------------------------------------------

DRIVER_OPTIONS = (
    cfg.StrOpt("san_address"),
    cfg.IntOpt("san_port", min=1, max=65535),
    cfg.StrOpt("san-password", secret=True),
)


def backend_conf(directory: Path, text: str) -> configuration.BackendOptions:
    conf = configuration.load([written(directory, f"[DEFAULT]\nenabled_backends = one\n{text}")])
    driver = configuration.driver_name(conf, "one")
    return configuration.backend_options(conf, "one", DRIVER_OPTIONS, driver)


def test_the_options_of_a_backend(tmp_path: Path) -> None:
    text = f"[one]\nvolume_driver = san\nsan_address = 192.0.2.1\nsan_port = 3260\nsan_password = {SECRET}\n"
    options = backend_conf(tmp_path, text)
    assert options["san_address"] == "192.0.2.1"
    assert options["san_port"] == 3260
    assert options["san_password"] == SECRET
    assert options["driver_timeout_seconds"] == 300.0
    assert set(options) == {option.dest for option in (*backend.OPTIONS, *DRIVER_OPTIONS)}


@pytest.mark.parametrize("text", ["", "[one]\nsan_port = 1\n", "[one]\nvolume_driver =\n"])
def test_a_backend_without_section_or_driver(tmp_path: Path, text: str) -> None:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        backend_conf(tmp_path, text)
    assert caught.value.fields["option"] == "volume_driver"
    assert caught.value.fields["group"] == "one"
    assert str(tmp_path / "volmig.conf") in caught.value.message


def test_a_backend_without_any_file() -> None:
    conf = configuration.load([], overrides={"DEFAULT": {"enabled_backends": ["one"]}})
    with pytest.raises(errors.ConfigOptionInvalid, match="no configuration file"):
        configuration.driver_name(conf, "one")


def test_an_unknown_option_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        backend_conf(tmp_path, "[one]\nvolume_driver = san\nsan_adress = 192.0.2.1\n")
    error = caught.value
    assert error.fields["option"] == "san_adress"
    assert error.fields["source"] == str(tmp_path / "volmig.conf")
    assert error.fields["reader"] == "the driver 'san'"
    assert "san_address" in error.hint
    assert "driver_migrate_timeout_seconds" not in error.hint


def test_an_unknown_option_unlike_any_other_lists_all(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        backend_conf(tmp_path, "[one]\nvolume_driver = san\nzzz = 1\n")
    for option in (*backend.OPTIONS, *DRIVER_OPTIONS):
        assert option.dest in caught.value.hint


@pytest.mark.parametrize("spelling", ["san-port", "san-password", "San_port"])
def test_a_spelling_that_would_not_be_read_is_refused(tmp_path: Path, spelling: str) -> None:
    with pytest.raises(errors.ConfigOptionUnknown) as caught:
        backend_conf(tmp_path, f"[one]\nvolume_driver = san\n{spelling} = 7\n")
    assert caught.value.fields["option"] == spelling
    assert spelling.lower().replace("-", "_") in caught.value.hint


def test_an_old_name_of_an_option_is_still_read(tmp_path: Path) -> None:
    options = (cfg.StrOpt("san_address", deprecated_opts=[cfg.DeprecatedOpt("san_ip")]),)
    conf = configuration.load([written(tmp_path, "[one]\nvolume_driver = san\nsan_ip = 192.0.2.1\n")])
    assert configuration.backend_options(conf, "one", options, "san")["san_address"] == "192.0.2.1"


def test_an_empty_value_is_no_value_of_a_backend(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        backend_conf(tmp_path, "[one]\nvolume_driver = san\ndriver_timeout_seconds =\n")
    assert caught.value.fields["option"] == "driver_timeout_seconds"


@pytest.mark.parametrize(
    ("option", "value"),
    [("san_port", "0"), ("san_port", "many"), ("driver_timeout_seconds", "0"), ("driver_timeout_seconds", "soon")],
)
def test_a_backends_value_out_of_bounds(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        backend_conf(tmp_path, f"[one]\nvolume_driver = san\n{option} = {value}\n")
    assert caught.value.fields["option"] == option
    assert caught.value.fields["group"] == "one"
    assert caught.value.fields["source"] == str(tmp_path / "volmig.conf")


def test_a_backends_secret_is_in_no_error(tmp_path: Path) -> None:
    options = (cfg.IntOpt("san_token", secret=True),)
    conf = configuration.load([written(tmp_path, f"[one]\nvolume_driver = san\nsan_token = {SECRET}\n")])
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        configuration.backend_options(conf, "one", options, "san")
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.fields["option"] == "san_token"


def test_a_backends_options_given_by_the_program() -> None:
    conf = configuration.load([], overrides={"one": {"volume_driver": "san", "san_port": "7"}})
    assert configuration.driver_name(conf, "one") == "san"
    assert configuration.backend_options(conf, "one", DRIVER_OPTIONS, "san")["san_port"] == 7


@pytest.mark.parametrize(("option", "cls"), [("san_prot", errors.ConfigOptionUnknown)])
def test_a_programs_mistake_is_told_as_the_programs(option: str, cls: type[errors.VolmigError]) -> None:
    conf = configuration.load([], overrides={"one": {"volume_driver": "san", option: "7"}})
    with pytest.raises(cls) as caught:
        configuration.backend_options(conf, "one", DRIVER_OPTIONS, "san")
    assert caught.value.fields["source"] == "given by the program"


def test_a_driver_may_not_give_another_meaning_to_a_common_option(tmp_path: Path) -> None:
    conf = configuration.load([written(tmp_path, "[one]\nvolume_driver = san\n")])
    with pytest.raises(errors.ConfigOptionInvalid) as caught:
        configuration.backend_options(conf, "one", (cfg.StrOpt("driver_timeout_seconds"),), "san")
    assert caught.value.fields["option"] == "driver_timeout_seconds"
    assert "san" in caught.value.fields["source"]


def test_the_listing_for_the_sample_file_holds_all_groups() -> None:
    listed = dict(opts.list_opts())
    assert set(listed) == {"DEFAULT", "database", "migration", "transfer", "example_backend", "example_lvm_backend"}
    assert {"volume_driver", "file_directory"} <= {option.dest for option in listed["example_backend"]}
