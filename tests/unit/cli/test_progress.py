from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping

import pytest

from volmig.cli.live import LiveProgress
from volmig.cli.progress import (
    PlainProgress,
    SilentProgress,
    SteadyProgress,
    is_live,
    progress_for,
    progress_line,
)
from volmig.model import Phase

from .fabricated import MIB, event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_line_tells_phase_stage_amount_rate_and_time_left() -> None:
    line = progress_line(event(stage="copy", bytes_done=64 * MIB, rate_bytes=12.34 * MIB, eta_seconds=15.6))
    assert line == "migrating (copy): 64.0 MiB of 256 MiB (25 %), 12.3 MiB/s, 0:16 left"


def test_a_line_leaves_out_what_is_unknown() -> None:
    assert progress_line(event(stage="copy", bytes_done=MIB)) == "migrating (copy): 1.00 MiB of 256 MiB (0 %)"
    assert progress_line(event(bytes_total=0, stage="copy")) == "migrating (copy)"
    assert progress_line(event(stage="flush")) == "migrating (flush)"
    assert progress_line(event(bytes_done=256 * MIB, rate_bytes=1.0)) == "migrating"
    assert progress_line(event(Phase.QUEUED)) == "queued"
    assert progress_line(event(Phase.ROLLING_BACK, bytes_done=MIB)) == "rolling back"


def test_the_line_of_the_end_has_no_rate_and_tells_an_error() -> None:
    assert progress_line(event(Phase.SUCCESS, bytes_done=256 * MIB, rate_bytes=5.0, eta_seconds=0.0)) == "success"
    failed = event(Phase.ERROR, bytes_done=MIB, error_code="disk-full", error_message="No\nspace.")
    assert progress_line(failed) == "error: No\\nspace. [disk-full]"


def test_plain_lines_come_at_changes_and_every_few_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, interval_seconds=3.0, clock=clock) as progress:
        progress.update(event(Phase.QUEUED))
        progress.update(event(Phase.STARTING))
        for tick in range(80):
            clock.now += 0.1
            progress.update(event(stage="copy", bytes_done=(tick + 1) * MIB))
        progress.update(event(stage="verify", bytes_done=0))
        progress.update(event(Phase.SUCCESS, bytes_done=256 * MIB))
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "queued",
        "starting",
        "migrating (copy)",
        "migrating (copy)",
        "migrating (copy)",
        "migrating (verify)",
        "success",
    ]


def test_a_plain_line_is_not_repeated_while_nothing_changes() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock=clock) as progress:
        for _ in range(20):
            clock.now += 10
            progress.update(event(stage="copy", bytes_done=MIB))
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("terminal", "live"), [("xterm-256color", True), ("dumb", False), ("unknown", False), ("", False), (None, False)]
)
def test_only_a_terminal_that_can_redraw_gets_a_bar(terminal: str | None, live: bool) -> None:
    environment: Mapping[str, str] = {} if terminal is None else {"TERM": terminal}
    assert is_live(Terminal(), environment) is live
    assert not is_live(io.StringIO(), {"TERM": "xterm"})


def test_the_display_suits_the_stream() -> None:
    xterm = {"TERM": "xterm"}
    assert isinstance(progress_for(Terminal(), environment=xterm), LiveProgress)
    assert isinstance(progress_for(io.StringIO(), environment=xterm), PlainProgress)
    assert isinstance(progress_for(Terminal(), quiet=True, environment=xterm), SilentProgress)
    assert isinstance(progress_for(io.StringIO(), may_close=True, environment=xterm), SteadyProgress)


def drawn(stream: Terminal) -> str:
    with LiveProgress(stream) as progress:
        progress.update(event(Phase.STARTING))
        progress.update(event(stage="copy", bytes_done=64 * MIB, rate_bytes=10 * MIB, eta_seconds=19.0))
        progress.note("a [bold]note[/bold]")
        progress.update(event(stage="copy", bytes_done=256 * MIB))
        progress.update(event(stage="verify", bytes_done=128 * MIB))
        progress.update(event(stage="flush"))
        progress.update(event(Phase.COMPLETING, bytes_done=256 * MIB))
        progress.update(event(Phase.SUCCESS, bytes_done=256 * MIB))
    return stream.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal")
def test_the_bar_shows_stage_share_rate_and_time_left() -> None:
    text = drawn(Terminal())
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"copy\s.* 25 %  64.0 MiB  10.0 MiB/s  0:19 left", plain)
    assert re.search(r"verify\s.* 50 %\s+128 MiB", plain)
    assert "a [bold]note[/bold]" in plain
    assert "\x1b[3" in text, "colours were expected"
    last = plain.rindex("copy ")
    assert re.search(r"copy\s.*100 %\s+256 MiB\s*\n?\s*verify\s.*100 %\s+256 MiB", plain[last:])
    assert "completing" not in plain[last:]


@pytest.mark.usefixtures("terminal")
def test_the_bar_of_a_failed_copy_stands_where_it_stopped() -> None:
    stream = Terminal()
    with LiveProgress(stream) as progress:
        progress.update(event(stage="copy", bytes_done=64 * MIB))
        progress.update(event(Phase.ROLLING_BACK, bytes_done=64 * MIB))
        progress.update(event(Phase.ERROR, bytes_done=64 * MIB, error_code="disk-full"))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "25 %" in plain[plain.rindex("copy ") :]
    assert "100 %" not in plain


@pytest.mark.usefixtures("terminal")
def test_the_bar_has_no_colours_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", drawn(Terminal()))


@pytest.mark.usefixtures("terminal")
def test_a_narrow_terminal_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert "copy" in drawn(Terminal())


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("kind", [PlainProgress, LiveProgress])
def test_a_steady_display_outlives_its_reader(kind: type) -> None:
    with SteadyProgress(kind(ClosedPipe())) as progress:
        progress.update(event(Phase.STARTING))
        progress.note("nobody reads this")
        progress.update(event(Phase.SUCCESS))


def test_an_unsteady_display_tells_that_its_reader_is_gone() -> None:
    with PlainProgress(ClosedPipe()) as progress, pytest.raises(BrokenPipeError):
        progress.update(event(Phase.STARTING))


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(Terminal())
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    assert is_live(Terminal())
