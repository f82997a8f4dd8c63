from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest

from volmig.cli.streams import OutputLost, standard_streams


class Failing(io.StringIO):
    """Fails as a stream does whose descriptor fails: when it is written to, and again when it is flushed."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.fixture
def own_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    yield
    sys.stdout, sys.stderr = before


@pytest.mark.usefixtures("own_streams")
@pytest.mark.parametrize(
    ("error", "closed_pipe"), [(BrokenPipeError(32, "Broken pipe"), True), (OSError(28, "No space left"), False)]
)
def test_a_failing_stream_is_told_apart_from_failing_work(error: OSError, closed_pipe: bool) -> None:
    failing = Failing(error)
    sys.stdout = failing
    with pytest.raises(OutputLost) as caught, standard_streams():
        sys.stdout.write("x")
    assert caught.value.is_closed_pipe is closed_pipe
    assert caught.value.strerror == error.strerror
    assert sys.stdout is failing


def test_an_error_of_the_work_stays_as_it_is() -> None:
    error = BrokenPipeError(32, "a helper's pipe")
    with pytest.raises(BrokenPipeError) as caught, standard_streams():
        raise error
    assert caught.value is error
    assert not isinstance(caught.value, OutputLost)


def test_streams_are_put_back_and_what_was_written_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with standard_streams():
        sys.stdout.writelines(["a", "b"])
        assert not sys.stdout.isatty()
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "ab"


def test_no_file_is_opened_in_the_place_of_a_closed_stream() -> None:
    script = (
        "import os, sys\n"
        "from volmig.cli.streams import standard_streams\n"
        "with standard_streams():\n"
        "    with open(sys.executable, 'rb') as file:\n"
        "        sys.exit(0 if file.fileno() > 2 and os.readlink('/proc/self/fd/2') == '/dev/null' else 9)"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(command, timeout=60).returncode == 0
