from __future__ import annotations

import unittest

import ddt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.cli.durations import parse_duration


@ddt.ddt
class TestParseDuration(unittest.TestCase):
    @ddt.data(("0", 0), ("90", 90), ("30s", 30), ("10m", 600), ("2h", 7200), ("7d", 604800), (" 7D ", 604800))
    @ddt.unpack
    def test_accepted(self, text: str, expected: int) -> None:
        assert parse_duration(text) == expected

    @ddt.data("", "d", "-1", "1.5h", "10 m", "10min", "1w", "1h30m", "9999999999999", "٣")
    def test_refused(self, text: str) -> None:
        with pytest.raises(errors.RequestInvalid, match="not a whole number") as caught:
            parse_duration(text)
        assert "30s, 10m, 2h or 7d" in caught.value.hint


@given(st.text(max_size=8))
@settings(max_examples=200, deadline=None)
def test_anything_is_a_number_or_refused(text: str) -> None:
    try:
        assert parse_duration(text) >= 0
    except errors.RequestInvalid:
        assert not text.strip().isdecimal() or not text.isascii()
