from __future__ import annotations

import unittest

import ddt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig import errors
from volmig.cli.sizes import (
    MAX_BYTES,
    format_approximate,
    format_duration,
    format_rate,
    format_size,
    parse_limit,
    parse_rate,
    parse_size,
)

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4


@ddt.ddt
class TestParseSize(unittest.TestCase):
    @ddt.data(
        ("10", 10 * GIB),
        ("1", GIB),
        ("10GiB", 10 * GIB),
        ("10G", 10 * GIB),
        ("10g", 10 * GIB),
        ("10 GiB", 10 * GIB),
        (" 10gib ", 10 * GIB),
        ("512MiB", 512 * MIB),
        ("512M", 512 * MIB),
        ("7k", 7 * KIB),
        ("3TiB", 3 * TIB),
        ("1000B", 1000),
        ("1b", 1),
        ("010K", 10 * KIB),
        ("8388607T", 8388607 * TIB),
        (f"{MAX_BYTES}B", MAX_BYTES),
    )
    @ddt.unpack
    def test_accepted(self, text: str, expected: int) -> None:
        assert parse_size(text) == expected

    @ddt.data(
        ("0", "zero"),
        ("0GiB", "zero"),
        ("-1", "sign"),
        ("+1", "sign"),
        ("-5GiB", "sign"),
        ("1.5G", "fraction"),
        ("1,5G", "fraction"),
        ("1.0", "fraction"),
        ("10GB", "ambiguous"),
        ("10kb", "ambiguous"),
        ("", "number"),
        (" ", "number"),
        ("G", "number"),
        ("ten", "number"),
        ("1e3", "number"),
        ("0x10", "number"),
        ("1_000", "number"),
        ("10GiBs", "unit"),
        ("10 zettabytes", "unit"),
        ("10G 5M", "number"),
        ("10G\n", "number"),
        ("\u0661\u0660", "number"),
        ("8EiB", "more than"),
        (f"{MAX_BYTES + 1}B", "more than"),
        ("9" * 5000, "more than"),
    )
    @ddt.unpack
    def test_refused_with_the_reason(self, text: str, reason: str) -> None:
        with pytest.raises(errors.SizeInvalid) as caught:
            parse_size(text)
        assert reason in caught.value.fields["reason"]
        assert caught.value.fields["value"] == text


@ddt.ddt
class TestParseRate(unittest.TestCase):
    @ddt.data(("50MiB", 50 * MIB), ("50MiB/s", 50 * MIB), ("1000B", 1000), ("2G/s", 2 * GIB))
    @ddt.unpack
    def test_accepted(self, text: str, expected: int) -> None:
        assert parse_rate(text) == expected

    @ddt.data(("50", "no unit"), ("50/s", "no unit"), ("0MiB/s", "zero"), ("50MiB/min", "number"), ("1.5M", "fraction"))
    @ddt.unpack
    def test_refused(self, text: str, reason: str) -> None:
        with pytest.raises(errors.SizeInvalid) as caught:
            parse_rate(text)
        assert reason in caught.value.fields["reason"]


@given(st.integers(min_value=1, max_value=MAX_BYTES))
@settings(max_examples=200, deadline=None)
def test_a_formatted_size_is_parsed_back_exactly(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_positive_size_or_refused_as_one(text: str) -> None:
    try:
        size_bytes = parse_size(text)
    except errors.SizeInvalid:
        return
    assert 0 < size_bytes <= MAX_BYTES


@given(st.integers(min_value=1, max_value=MAX_BYTES))
@settings(max_examples=200, deadline=None)
def test_an_approximate_size_is_near_and_short(size_bytes: int) -> None:
    shown = format_approximate(size_bytes)
    amount, unit = shown.split(" ")
    assert abs(float(amount) * parse_size(f"1{unit}") - size_bytes) <= 0.006 * size_bytes
    assert len(amount) <= 4


@ddt.ddt
class TestFormats(unittest.TestCase):
    @ddt.data(
        (10 * GIB, "10 GiB"),
        (1536 * MIB, "1536 MiB"),
        (GIB + 1, f"{GIB + 1} B"),
        (1000, "1000 B"),
        (0, "0 B"),
        (1024, "1 KiB"),
    )
    @ddt.unpack
    def test_exact(self, size_bytes: int, expected: str) -> None:
        assert format_size(size_bytes) == expected

    @ddt.data(
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (10 * GIB, "10.0 GiB"),
        (114.6 * GIB, "115 GiB"),
        (999.6 * MIB, "0.98 GiB"),
    )
    @ddt.unpack
    def test_approximate(self, size_bytes: float, expected: str) -> None:
        assert format_approximate(size_bytes) == expected

    @ddt.data(
        (0.2, "0:00"),
        (7, "0:07"),
        (59.6, "1:00"),
        (750, "12:30"),
        (3723, "1:02:03"),
        (176400, "2 d 01:00:00"),
        (-3, "0:00"),
    )
    @ddt.unpack
    def test_duration(self, seconds: float, expected: str) -> None:
        assert format_duration(seconds) == expected

    def test_rate(self) -> None:
        assert format_rate(312 * MIB) == "312 MiB/s"


def test_a_limit_is_a_rate_or_none() -> None:
    assert parse_limit("50MiB/s") == 50 * MIB
    assert parse_limit(" 0 ") == 0
    for text in ("00", "50", "none", "-0"):
        with pytest.raises(errors.SizeInvalid):
            parse_limit(text)
