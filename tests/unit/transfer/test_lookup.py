"""Asking ends that hang where their data is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.waiting import LONG, SOON, until
from volmig import errors
from volmig.transfer import Control
from volmig.transfer.ends import opening
from volmig.transfer.ends.files import FileEnd
from volmig.transfer.flow.lookup import looking

from .fakes import descriptors, make_file

MIB = 1024 * 1024


class HangingEnd(FileEnd):
    """A file whose map hangs from the second extent on."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), os.O_RDONLY, is_destination=False)
        self.goes_on = threading.Event()

    def extents(self, size_bytes: int, begin_bytes: int = 0) -> Iterator[tuple[int, int]]:
        for number, extent in enumerate(super().extents(size_bytes, begin_bytes)):
            if number:
                self.goes_on.wait(LONG)
            yield extent


def test_extents_come_in_order(tmp_path: Path) -> None:
    places = [(start * MIB, start * MIB + 65536) for start in range(0, 400, 2)]
    path = make_file(tmp_path / "file", 400 * MIB, places)
    with opening.open_source(path) as end, looking(Control()) as lookup:
        assert list(lookup.extents(end, 400 * MIB)) == list(end.extents(400 * MIB)) == places
        assert list(lookup.extents(end, 100 * MIB, 98 * MIB)) == [(98 * MIB, 98 * MIB + 65536)]
        assert list(lookup.extents(end, 0)) == []


def test_what_an_end_raises_is_raised(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", MIB)
    with opening.open_source(path) as end, looking(Control()) as lookup:
        with pytest.raises(ZeroDivisionError):
            lookup.ask(end, lambda: 1 // 0, "a question")
        assert lookup.ask(end, lambda: 5, "a question") == 5


@pytest.mark.parametrize("work", ["extents", "survey"])
def test_a_cancellation_does_not_wait_for_an_answer(tmp_path: Path, work: str) -> None:
    path = make_file(tmp_path / "file", 9 * MIB, [(0, MIB), (4 * MIB, 5 * MIB)])
    before = descriptors()
    end, control = HangingEnd(path), Control()

    def look() -> None:
        with end, looking(control) as lookup:
            if work == "survey":
                lookup.survey(end, 0, 9 * MIB)
            else:
                list(lookup.extents(end, 9 * MIB))

    started = time.monotonic()
    threading.Timer(0.1, control.cancel).start()
    with pytest.raises(errors.TransferCancelled) as caught:
        look()
    assert time.monotonic() - started < SOON
    assert "The storage hangs" in caught.value.hint
    assert str(path) in caught.value.hint
    # Closed by now, and yet kept: another file with its number would be asked otherwise.
    assert descriptors() - before
    end.goes_on.set()
    until(lambda: descriptors() == before)


def test_the_survey_of_a_destination(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", 9 * MIB, [(MIB, 2 * MIB), (4 * MIB, 5 * MIB)])
    with opening.open_destination(path) as end:
        assert not end.known_zero(0, MIB)
        end.survey(0, 8 * MIB)
        assert end.known_zero(0, MIB)
        assert end.known_zero(2 * MIB + 5, MIB)
        assert end.known_zero(5 * MIB, 3 * MIB)
        assert not end.known_zero(5 * MIB, 3 * MIB + 1)
        assert not end.known_zero(MIB, 1)
        assert not end.known_zero(MIB - 1, 2)
        end.survey(4 * MIB, 9 * MIB)
        assert not end.known_zero(0, MIB)
        assert end.known_zero(8 * MIB, MIB)


def test_a_survey_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volmig.transfer.ends.holes.MOST_HOLES", 2)
    path = make_file(tmp_path / "file", 9 * MIB, [(MIB, 2 * MIB), (4 * MIB, 5 * MIB), (7 * MIB, 8 * MIB)])
    with opening.open_destination(path) as end:
        end.survey(0, 9 * MIB)
        assert end.known_zero(2 * MIB, 2 * MIB)
        assert not end.known_zero(5 * MIB, 2 * MIB)
        assert not end.known_zero(8 * MIB, MIB)
