from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stevedore.exception import NoMatches
from stevedore.extension import Extension

from volmig import errors, plugins
from volmig.transfer import Control, CopyJob, CopyOptions, End, EngineOutcome, TransferEngine, Verify, copy
from volmig.transfer.chunked import ChunkedEngine
from volmig.transfer.dd import DdEngine
from volmig.transfer.engines import engine_names, load_engine

from .fakes import Handle, make_file, pattern

MIB = 1024 * 1024


class Plain(TransferEngine):
    """A third party's engine: right, and with neither digest nor progress."""

    name = "plain"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        return ""

    def run(self, job: CopyJob) -> EngineOutcome:
        content = Path(str(job.source)).read_bytes()[: job.size_bytes]
        with Path(str(job.destination)).open("r+b") as file:
            file.write(content)
        return EngineOutcome(bytes_copied=len(content), bytes_zero=0)


class Forgetful(Plain):
    name = "forgetful"

    def run(self, job: CopyJob) -> EngineOutcome:
        return EngineOutcome(bytes_copied=job.size_bytes - 1, bytes_zero=0)


class Lazy(Plain):
    name = "lazy"

    def run(self, job: CopyJob) -> EngineOutcome:
        return EngineOutcome(bytes_copied=job.size_bytes, bytes_zero=0, source_digest="0" * 64, source_leaves=b"x")


class Picky(Plain):
    name = "chunked"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        return "it does not like them"


class Old(Plain):
    name = "old"
    interface_version = (0, 9)


class Versionless(Plain):
    name = "versionless"
    interface_version = "one"  # type: ignore[assignment]


class Unfinished(TransferEngine):
    name = "unfinished"


class Failing(Plain):
    name = "failing"

    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Point:
    """An entry point of another distribution."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value = f"acme:{name}"
        self.dist = SimpleNamespace(name="acme-engines", version="1.0")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let stevedore find other plugins than those installed; one that is an exception fails to import."""

    def install(**found: Any) -> None:
        def driver_manager(namespace: str, name: str, *, invoke_on_load: bool, on_load_failure_callback: Any) -> Any:
            assert namespace == "volmig.transfer_engines"
            assert not invoke_on_load
            if name not in found:
                raise NoMatches(name)
            if isinstance(found[name], Exception):
                on_load_failure_callback(None, Point(name), found[name])
            return {name: Extension(name, Point(name), found[name], None)}

        monkeypatch.setattr(plugins, "DriverManager", driver_manager)
        monkeypatch.setattr(plugins, "names", lambda _: sorted(found))

    return install


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "source"
    source.write_bytes(pattern(5 * MIB))
    return source, make_file(tmp_path / "destination", 5 * MIB)


def test_the_engines_of_this_distribution_are_registered() -> None:
    assert engine_names()[0] == "chunked"
    assert type(load_engine("chunked")) is ChunkedEngine
    assert type(load_engine("dd")) is DdEngine


def test_an_engine_by_its_path(ends: tuple[Path, Path]) -> None:
    result = copy(*ends, size_bytes=1, options=CopyOptions(engine="volmig.transfer.dd:DdEngine"))
    assert result.engine == "dd"


def test_unknown_engine(ends: tuple[Path, Path]) -> None:
    with pytest.raises(errors.PluginNotFound) as raised:
        copy(*ends, size_bytes=1, options=CopyOptions(engine="warp"))
    assert raised.value.fields["plugin"] == "warp"
    assert "chunked" in raised.value.message


@pytest.mark.parametrize(
    ("plugin", "name", "reason"),
    [
        (dict, "dict", "derived from"),
        (print, "print", "derived from"),
        (Old, "old", r"\(0, 9\)"),
        (Versionless, "versionless", "interface version"),
        (Unfinished, "unfinished", "does not implement refusal, run"),
        (Plain, "other", "calls itself 'plain'"),
        (Failing, "failing", "no licence"),
        (ImportError("no module named acme"), "broken", "no module named acme"),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution(
    installed: Callable[..., None], ends: tuple[Path, Path], plugin: Any, name: str, reason: str
) -> None:
    installed(**{name: plugin})
    with pytest.raises(errors.PluginInvalid, match=reason) as raised:
        copy(*ends, size_bytes=1, options=CopyOptions(engine=name))
    assert raised.value.fields["plugin"] == name
    assert raised.value.fields["distribution"] == "acme-engines 1.0"


def test_auto_says_why_not_the_others(installed: Callable[..., None], ends: tuple[Path, Path]) -> None:
    installed(plain=Plain, chunked=Picky, broken=ImportError("gone"))
    result = copy(*ends, size_bytes=5 * MIB)
    assert result.engine == "plain"
    assert "chunked: it does not like them" in result.engine_reason
    assert "gone" in result.engine_reason


def test_auto_with_nothing_that_can(installed: Callable[..., None], ends: tuple[Path, Path]) -> None:
    installed(chunked=Picky)
    with pytest.raises(errors.UnsupportedTransfer, match="does not like"):
        copy(*ends, size_bytes=1)
    installed()
    with pytest.raises(errors.UnsupportedTransfer, match="no engine"):
        copy(*ends, size_bytes=1)


def test_auto_takes_chunked_for_handles(ends: tuple[Path, Path]) -> None:
    result = copy(ends[0], Handle(bytes(MIB)), size_bytes=MIB)  # type: ignore[arg-type]
    assert result.engine == "chunked"


@pytest.mark.parametrize("verify", [Verify.DIGEST, Verify.COMPARE])
def test_an_engine_without_digest_is_verified_by_reading_the_source_again(
    installed: Callable[..., None], ends: tuple[Path, Path], verify: Verify
) -> None:
    installed(plain=Plain)
    result = copy(*ends, size_bytes=5 * MIB, options=CopyOptions(engine="plain", verify=verify))
    assert result.source_digest == result.destination_digest != ""


def test_an_engine_is_not_believed(installed: Callable[..., None], ends: tuple[Path, Path]) -> None:
    installed(lazy=Lazy, forgetful=Forgetful)
    with pytest.raises(errors.VerificationFailed):
        copy(*ends, size_bytes=5 * MIB, options=CopyOptions(engine="lazy"))
    with pytest.raises(errors.TransferFailed, match="ended after"):
        copy(*ends, size_bytes=5 * MIB, options=CopyOptions(engine="forgetful", verify=Verify.NONE))


def test_chunked_flushes_by_itself(ends: tuple[Path, Path]) -> None:
    destination = Handle(bytes(MIB))
    flushed: list[int] = []
    outcome = ChunkedEngine().run(
        CopyJob(
            source=ends[0],
            destination=destination,  # type: ignore[arg-type]
            size_bytes=MIB,
            options=CopyOptions(),
            control=Control(),
            advance=lambda done, skipped: None,  # noqa: ARG005
            on_process=lambda process: None,  # noqa: ARG005
            flushing=lambda: flushed.append(destination.flushes),
        )
    )
    assert outcome.bytes_copied == MIB
    assert flushed == [0]
    assert destination.flushes == 1


@pytest.mark.parametrize("verify", list(Verify))
def test_what_an_engine_forgets_to_flush_is_flushed(
    installed: Callable[..., None], ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, verify: Verify
) -> None:
    installed(plain=Plain)
    flushed: list[str] = []
    fsync = os.fsync

    def watched_fsync(fd: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    copy(*ends, size_bytes=5 * MIB, options=CopyOptions(engine="plain", verify=verify))
    # The source first, so that what was written to it before the copy has left its trace.
    assert flushed == [str(ends[0]), str(ends[1])]


@pytest.mark.parametrize("engine", ["auto", "chunked", "dd"])
def test_a_format_that_no_engine_translates_is_never_copied_blindly(tmp_path: Path, engine: str) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(b"QFI\xfb" + bytes(1020))
    destination.write_bytes(bytes(1024))
    options = CopyOptions(engine=engine, source_format="qcow2", destination_format="raw")
    with pytest.raises(errors.UnsupportedTransfer, match="'qcow2'"):
        copy(source, destination, size_bytes=1024, options=options)
    assert destination.read_bytes() == bytes(1024)
