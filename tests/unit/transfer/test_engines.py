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
from volmig.transfer.engines.choice import choose, engine_names, load_engine
from volmig.transfer.engines.chunked import ChunkedEngine
from volmig.transfer.engines.dd import DdEngine
from volmig.transfer.engines.nbdcopy import NbdcopyEngine
from volmig.transfer.engines.qemu_img import QemuImgEngine
from volmig.transfer.flow import ring

from .fakes import Handle, make_file, pattern
from .image_headers import qcow2

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
        return EngineOutcome(bytes_copied=job.size_bytes, bytes_zero=0, source_digest="0" * 64, source_segments=b"x")


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
    result = copy(*ends, size_bytes=1, options=CopyOptions(engine="volmig.transfer.engines.dd:DdEngine"))
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


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("verify", list(Verify))
def test_what_an_engine_forgets_to_flush_is_flushed(
    installed: Callable[..., None], ends: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, verify: Verify
) -> None:
    installed(plain=Plain)
    flushed: list[str] = []
    fsync, push = os.fsync, ring._Ring.push

    def watched_fsync(fd: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    def watched_push(to: ring._Ring, request: object, operation: int, fd: int, *arguments: int) -> None:
        if operation == ring._OP_FSYNC:
            flushed.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        push(to, request, operation, fd, *arguments)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(ring._Ring, "push", watched_push)
    copy(*ends, size_bytes=5 * MIB, options=CopyOptions(engine="plain", verify=verify))
    # The source first, so that what was written to it before the copy has left its trace.
    assert flushed == [str(ends[0]), str(ends[1])]


@pytest.mark.parametrize("engine", ["chunked", "dd"])
def test_an_engine_that_does_not_translate_never_copies_blindly(tmp_path: Path, engine: str) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(qcow2())
    destination.write_bytes(bytes(65536))
    options = CopyOptions(engine=engine, source_format="qcow2", destination_format="raw")
    with pytest.raises(errors.UnsupportedTransfer, match="'qcow2'"):
        choose(source, destination, options)
    assert destination.read_bytes() == bytes(65536)


class Serving(Plain):
    """An engine that serves what its name is for."""

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        raw = options.source_format == options.destination_format == "raw"
        return "" if raw or self.name == "qemu-img" else "an end is not raw"


class Chunked(Serving):
    name = "chunked"


class QemuImg(Serving):
    name = "qemu-img"


class Absent(Plain):
    name = "qemu-img"

    def refusal(self, source: End, destination: End, options: CopyOptions) -> str:
        raise errors.ProgramMissing(program="qemu-img", package="qemu-utils")


@pytest.mark.parametrize(
    ("source", "destination", "formats", "engine", "reason"),
    [
        ("/a", "/b", ("raw", "raw"), "chunked", "both ends are raw and local: chunked"),
        ("/a", Handle(b""), ("raw", "raw"), "chunked", "an end is a file-like handle: chunked"),
        ("nbd://host", "/b", ("raw", "raw"), "chunked", "an end is an NBD address, and chunked digests"),
        ("/a", "nbd+unix:///?socket=x", ("raw", "raw"), "chunked", "an end is an NBD address"),
        ("/a", "/b", ("qcow2", "raw"), "qemu-img", "qcow2 is to become raw: qemu-img"),
        ("/a", "/b", ("raw", "vmdk"), "qemu-img", "raw is to become vmdk: qemu-img"),
        ("/a", "/b", ("qcow2", "qcow2"), "qemu-img", "both ends are qcow2: qemu-img"),
    ],
)
def test_auto_chooses_by_ends_and_formats(
    installed: Callable[..., None], source: Any, destination: Any, formats: tuple[str, str], engine: str, reason: str
) -> None:
    installed(**{"chunked": Chunked, "qemu-img": QemuImg, "dd": DdEngine})
    options = CopyOptions(source_format=formats[0], destination_format=formats[1])
    chosen, why = choose(source, destination, options)
    assert chosen.name == engine
    assert why.startswith(reason)


def test_auto_names_the_package_that_is_missing(installed: Callable[..., None], ends: tuple[Path, Path]) -> None:
    installed(**{"chunked": Chunked, "qemu-img": Absent})
    with pytest.raises(errors.ProgramMissing) as raised:
        choose(*ends, CopyOptions(source_format="qcow2"))
    assert "qemu-utils" in raised.value.hint
    assert choose(*ends, CopyOptions())[0].name == "chunked"
    installed(**{"chunked": Chunked, "qemu-img": Absent, "plain": Plain})
    chosen, why = choose(*ends, CopyOptions(source_format="qcow2"))
    assert chosen.name == "plain"
    assert "qemu-img' is not installed" in why


@pytest.mark.parametrize("engine", [QemuImgEngine, NbdcopyEngine])
def test_the_engines_that_run_programs_are_registered(engine: type[TransferEngine]) -> None:
    assert type(load_engine(engine.name)) is engine
