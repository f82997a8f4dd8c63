"""Options of all tests, what those share that measure something, and a session that is alike however it was started."""

from __future__ import annotations

import contextlib
import gc
import importlib
import signal
import sys
from collections.abc import Callable, Generator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests that kill processes everywhere."""
    group = parser.getgroup("volmig")
    group.addoption("--long", action="store_true", help="kill at every pair of points, and at many more instants")
    group.addoption("--seed", type=int, metavar="NUMBER", help="what all chance depends on; another one each time")


def pytest_configure() -> None:
    """Begin with the signals as a terminal gives them."""
    hear_signals()


def hear_signals() -> None:
    """Give the signals that people send their usual effect, here and in the processes that tests start.

    A shell without job control starts what stands before ``&`` with SIGINT and SIGQUIT ignored, and ``nohup`` ignores
    SIGHUP; whoever is started with an ignored signal goes on ignoring it, and a test that sends it waits forever.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without searching for garbage, and never look again through what was collected.

    All modules and some thousand tests stay until the end; searching through them took a quarter of collecting alone.
    """
    gc.disable()
    try:
        _share_compiling(session.config)
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def _share_compiling(config: pytest.Config) -> None:
    """Compile another part of the test modules in each of several workers.

    In a fresh clone nothing is compiled yet, and compiling takes twice as long as collecting. Workers that collect in
    the same order would each compile everything, at the same time.
    """
    worker: dict[str, object] | None = getattr(config, "workerinput", None)
    places = [config.invocation_params.dir / argument for argument in config.args]
    if worker is None or sys.dont_write_bytecode or not all(place.is_dir() for place in places):
        return
    files = sorted(file for place in places for file in place.rglob("test_*.py"))
    number, count = int(str(worker["workerid"]).removeprefix("gw")), int(str(worker["workercount"]))
    begin = len(files) * number // count
    for file in files[begin:] + files[:begin]:
        # What cannot be imported fails once more when it is collected, and is reported then.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(file.relative_to(config.rootpath).with_suffix("").parts))


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Give what shows a figure that a test has measured, also when it passes."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return show
