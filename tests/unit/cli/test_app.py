"""The command line against an engine that records what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.cli.app import main
from volmig.cli.base import BaseCommand, command_line, key_values
from volmig.cli.migrate import VERIFY_CHOICES
from volmig.manager.pools import BackendInfo, parse_pools
from volmig.model import Volume, VolumeStatus
from volmig.store.base import MigrationQuery, VolumeQuery
from volmig.transfer.base import Verify

from .fabricated import migration

GIB = 1024**3
VOLUME = Volume(
    id="v-1",
    name="we\x1b[31mb",
    size_bytes=10 * GIB,
    host="h@a#a",
    status=VolumeStatus.AVAILABLE,
    metadata={"k": "v", "empty": ""},
)


class RecordingEngine:
    """Answers each call with a fixed result, or raises it, and keeps the arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "list_volumes": [VOLUME],
            "list_migrations": [migration()],
            "list_backends": [],
            "delete_volume": None,
            "unmanage_volume": None,
        }
        self.closed = 0

    def __enter__(self) -> RecordingEngine:
        return self

    def __exit__(self, *args: object) -> None:
        self.closed += 1

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            answer = self.answers.get(name, VOLUME)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    """Keep every test of this file away from the configuration and the database of the machine."""
    recording = RecordingEngine()
    monkeypatch.setattr(BaseCommand, "open_engine", lambda *_: recording)
    return recording


def test_create_passes_on_all_that_is_given(engine: RecordingEngine) -> None:
    words = (
        "volume create --host h@a#a --size 512MiB --name web --type fast --project p --property k=v --property x=a=b"
    )
    assert main(words.split()) == 0
    assert engine.calls == [
        (
            "create_volume",
            (),
            {
                "host": "h@a#a",
                "size_bytes": 512 * 1024**2,
                "name": "web",
                "volume_type": "fast",
                "project_id": "p",
                "metadata": {"k": "v", "x": "a=b"},
            },
        )
    ]
    assert engine.closed == 1


@pytest.mark.parametrize(
    ("size", "code"), [("0", 2), ("-1", 2), ("1.5", 2), ("10GB", 2), ("garbage", 2), ("", 2), ("9" * 40, 2)]
)
def test_a_bad_size_is_a_usage_error_before_anything_happens(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str], size: str, code: int
) -> None:
    assert main(["volume", "create", "--host", "h@a#a", f"--size={size}"]) == code
    assert "[size-invalid]" in capsys.readouterr().err
    assert engine.calls == []


def test_list_passes_on_its_filters(engine: RecordingEngine) -> None:
    words = "volume list --name n --host h@a --status in-use --project p --limit 3 --marker m"
    assert main(words.split()) == 0
    query = VolumeQuery(name="n", host="h@a", status=VolumeStatus.IN_USE, project_id="p", limit=3, marker="m")
    assert engine.calls == [("list_volumes", (query,), {})]


def test_migration_list_passes_on_its_filters(engine: RecordingEngine) -> None:
    assert main(["migration", "list", "--volume", "web", "--active", "--limit", "2"]) == 0
    query: MigrationQuery = engine.calls[-1][1][0]
    assert query.volume_id == "v-1"
    assert query.limit == 2
    assert {phase.value for phase in query.phases or ()} == {
        "queued",
        "starting",
        "migrating",
        "paused",
        "completing",
        "cancelling",
        "rolling_back",
    }


def test_the_history_of_a_deleted_volume_is_still_found(engine: RecordingEngine) -> None:
    engine.answers["show_volume"] = errors.VolumeNotFound(volume="gone")
    assert main(["migration", "list", "--volume", "gone"]) == 0
    engine.answers["list_migrations"] = []
    assert main(["migration", "list", "--volume", "gone"]) == 2


def test_manage_makes_the_path_absolute_and_follows_no_link(
    engine: RecordingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").touch()
    (tmp_path / "link").symlink_to("image")
    monkeypatch.chdir(tmp_path)
    assert main(["volume", "manage", "link", "--name", "n"]) == 0
    assert engine.calls[0][1] == (str(tmp_path / "link"),)


@pytest.mark.parametrize("bad", ["novalue", "=v", ""])
def test_a_property_needs_key_and_value(engine: RecordingEngine, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    assert main(["volume", "create", "--host", "h@a#a", "--size", "1", "--property", bad]) == 2
    assert "[request-invalid]" in capsys.readouterr().err
    assert engine.calls == []


def test_a_property_given_twice_is_refused() -> None:
    with pytest.raises(errors.RequestInvalid):
        key_values(["k=1", "k=2"])
    assert key_values(["k=", "l=a=b"]) == {"k": "", "l": "a=b"}


def test_several_volumes_are_deleted_and_each_failure_told(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["volume", "delete", "a", "b"]) == 0
    assert [args for _, args, _ in engine.calls] == [("a",), ("b",)]
    engine.answers["delete_volume"] = errors.VolumeNotFound(volume="c")
    assert main(["volume", "delete", "c", "d"]) == 2
    assert capsys.readouterr().err.count("[volume-not-found]") == 2


# --- output -----------------------------------------------------------------------------------


def test_programs_get_bytes_and_tables_readable_sizes(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["volume", "list", "-f", "json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["size_bytes"] == 10 * GIB
    assert main(["volume", "list"]) == 0
    table = capsys.readouterr().out
    assert "10 GiB" in table
    assert " size " in table
    assert "size_bytes" not in table


def test_a_table_shows_no_control_characters(engine: RecordingEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "show", "web"]) == 0
    table = capsys.readouterr().out
    assert "\x1b" not in table
    assert "we\\x1b[31mb" in table
    assert main(["volume", "show", "web", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == VOLUME.name


@pytest.mark.parametrize("column", ["size_bytes", "size", "Size"])
@pytest.mark.parametrize(("output", "expected"), [("value", str(10 * GIB)), ("table", "10 GiB")])
def test_a_column_is_chosen_by_either_name(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str], column: str, output: str, expected: str
) -> None:
    assert main(["volume", "list", "-f", output, "-c", column, "--sort-column", column]) == 0
    out = capsys.readouterr().out
    assert expected in out
    assert "v-1" not in out


def test_an_unknown_column_is_refused_before_anything_happens(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["volume", "create", "--host", "h@a#a", "--size", "1", "-c", "sise"]) == 2
    assert "[request-invalid]" in capsys.readouterr().err
    assert engine.calls == []


def test_long_shows_all_columns_and_sorting_by_a_hidden_one_works(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["volume", "list", "-f", "json"]) == 0
    assert "format" not in json.loads(capsys.readouterr().out)[0]
    assert main(["volume", "list", "--long", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["format"] == "raw"
    engine.answers["list_volumes"] = [VOLUME, VOLUME]
    assert main(["volume", "list", "--sort-column", "version", "-f", "json"]) == 0


def test_sizes_sort_as_numbers_in_a_table(engine: RecordingEngine, capsys: pytest.CaptureFixture[str]) -> None:
    small = Volume(id="v-2", name="n", size_bytes=9 * GIB, host="h@a#a")
    engine.answers["list_volumes"] = [VOLUME, small]
    assert main(["volume", "list", "--sort-column", "size", "-c", "id"]) == 0
    out = capsys.readouterr().out
    assert out.index("v-2") < out.index("v-1")


# --- mistakes ---------------------------------------------------------------------------------


def test_nothing_asked_gets_help_on_stderr_and_a_usage_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "volume migrate" in captured.err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_all_commands_on_stdout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for command in ("backend list", "pool list", "volume migrate", "migration watch", "demo"):
        assert f"  {command} " in out
    assert "130 cancelled" in out
    assert "Could not" not in out


@pytest.mark.parametrize(
    "words", [["volume", "create", "--help"], ["help", "volume", "create"], ["volume", "create", "--size", "1", "-h"]]
)
def test_help_for_a_command_says_what_a_bare_number_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(words)
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a bare number is GiB" in out
    assert "usage: volmig volume create" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vloume", "list"], "volume list"),
        (["volume", "lst"], "volume list"),
        (["volume", "frobnicate"], "volume create"),
        (["volume"], "volume create, volume delete"),
        (["migrate"], "volume migrate"),
        (["xyzzy"], "--help"),
        (["help", "volume", "lst"], "volume list"),
        (["--bogus", "volume", "list"], "--help"),
        (["a\x1b[2Jb"], "--help"),
    ],
)
def test_an_unknown_command_gets_suggestions(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("volmig: ")
    assert told in captured.err.splitlines()[1]
    assert "\x1b" not in captured.err


def test_commands_may_be_shortened(engine: RecordingEngine) -> None:
    assert main(["vol", "li"]) == 0
    assert engine.calls[0][0] == "list_volumes"


def test_global_options_do_not_swallow_those_of_a_command(
    engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def remember(self: BaseCommand) -> RecordingEngine:
        seen.append((self.config_files, self.quiet))
        return engine

    monkeypatch.setattr(BaseCommand, "open_engine", remember)
    assert main(["--config-file", "a", "-q", "volume", "list", "--name", "d", "--config-file", "b"]) == 0
    assert seen == [(["a", "b"], True)]
    assert engine.calls[0][1][0].name == "d"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.VolumeNotFound(volume="v"), 2, "volume-not-found"),
        (errors.DatabaseUnusable(database="d", reason="r"), 3, "database-unusable"),
        (errors.BackendDown(backend="b", reason="r"), 4, "backend-down"),
        (errors.LocationDoubtful(volume="v", source="a", destination="b", reason="r"), 5, "location-doubtful"),
        (errors.InternalError(reason="r"), 6, "internal-error"),
        (RuntimeError("boom"), 6, "unexpected"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_becomes_lines_and_a_status(
    engine: RecordingEngine,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    code: str,
) -> None:
    engine.answers["show_volume"] = error
    assert main(["volume", "show", "v", "-f", "json"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"[{code}]" in captured.err
    assert "Traceback" not in captured.err
    assert engine.closed == 1
    assert main(["--debug", "volume", "show", "v"]) == status
    assert "Traceback" in capsys.readouterr().err


def test_choices_are_those_of_the_transfer() -> None:
    assert set(VERIFY_CHOICES) == {verify.value for verify in Verify}


def test_a_command_to_be_pasted_is_quoted() -> None:
    assert command_line(["/a b/volmig.conf"], "volume", "show", "x'y") == (
        "volmig --config-file '/a b/volmig.conf' volume show 'x'\"'\"'y'"
    )
    assert command_line(None, "volume", "list") == "volmig volume list"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["volume", "create", "--help"], ["volume", "lst"]])
def test_help_and_mistakes_load_neither_engine_nor_database_nor_rich(words: list[str]) -> None:
    script = (
        "import sys\n"
        "from volmig.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'sqlalchemy', 'rich', 'oslo_config', 'alembic', 'cmd2', 'volmig.engine'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def backend(name: str, down_reason: str = "") -> BackendInfo:
    address = f"h@{name}#pool"
    pool = {"total_capacity_bytes": GIB, "free_capacity_bytes": GIB, "provisioned_capacity_bytes": 0}
    stats = {"pools": [{"pool_name": "pool", **pool}]}
    return BackendInfo(
        name=name,
        address=f"h@{name}",
        driver="file",
        driver_version="1",
        vendor_name="volmig",
        storage_protocol="file",
        volume_backend_name=name,
        up=not down_reason,
        down_reason=down_reason,
        capabilities=(),
        pools=() if down_reason else tuple(parse_pools(stats, lambda _: address).values()),
    )


def test_pools_of_a_backend_that_is_down_are_told_of(
    engine: RecordingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.answers["list_backends"] = [backend("a"), backend("b", "its directory is\ngone"), backend("c", "no answer")]
    assert main(["pool", "list", "-f", "json"]) == 0
    shown = capsys.readouterr()
    assert [pool["address"] for pool in json.loads(shown.out)] == ["h@a#pool"]
    assert shown.err.splitlines() == [
        "The pools of backend 'b' are missing, since it is down: its directory is\\ngone",
        "The pools of backend 'c' are missing, since it is down: no answer",
    ]
    assert main(["-q", "pool", "list"]) == 0
    assert capsys.readouterr().err == ""


def test_nothing_is_said_when_all_backends_are_up(engine: RecordingEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.answers["list_backends"] = [backend("a")]
    assert main(["pool", "list"]) == 0
    assert capsys.readouterr().err == ""
