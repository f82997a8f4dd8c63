"""Addresses of pools: what is one, what is none, and that text and value are the same thing."""

from __future__ import annotations

import string
import unittest

import ddt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volmig import errors
from volmig.model import PoolAddress

_INNER = string.ascii_letters + string.digits + "_.-"
_OUTER = string.ascii_letters + string.digits + "_"
labels = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(_OUTER),
    st.text(_INNER, max_size=20),
    st.sampled_from(["", *_OUTER]),
).filter(lambda text: text[-1] in _OUTER)
pools = st.text(min_size=1, max_size=40).filter(lambda text: text == text.strip() and text.isprintable())


@given(host=labels, backend=labels, pool=pools)
def test_what_is_written_is_read_back(host: str, backend: str, pool: str) -> None:
    address = PoolAddress(host=host, backend=backend, pool=pool)
    assert PoolAddress.parse(str(address)) == address
    assert str(PoolAddress.parse(str(address))) == str(address)


@given(text=st.text(max_size=60) | st.text("ab@#.- ", max_size=12))
def test_any_text_is_an_address_or_refused_by_name(text: str) -> None:
    try:
        written = str(PoolAddress.parse(text))
    except errors.AddressMalformed as error:
        written = str(error.fields["address"])
    assert written == text


@ddt.ddt
class Malformed(unittest.TestCase):
    @ddt.data(
        ("", "'@'"),
        ("host", "'@'"),
        ("host#pool", "'@'"),
        ("host@backend", "'#'"),
        ("@backend#pool", "host"),
        ("host@#pool", "backend"),
        ("host@backend#", "pool"),
        ("host@backend# pool", "pool"),
        ("host@backend#pool ", "pool"),
        ("host@backend#po\nol", "pool"),
        ("host@backend#po\0ol", "pool"),
        ("ho st@backend#pool", "host"),
        (" host@backend#pool", "host"),
        ("-host@backend#pool", "host"),
        ("host.@backend#pool", "host"),
        ("host@back/end#pool", "backend"),
        ("host@one@two#pool", "backend"),
        ("höst@backend#pool", "host"),
        ("host@back\nend#pool", "backend"),
        ("host@../..#pool", "backend"),
        ("h@b#" + "p" * 252, "255"),
    )
    @ddt.unpack
    def test_refused(self, text: str, part: str) -> None:
        with pytest.raises(errors.AddressMalformed) as caught:
            PoolAddress.parse(text)
        assert part in str(caught.value.fields["reason"])

    @ddt.data(
        ("h@b#p", ("h", "b", "p")),
        ("h@b#p@q#r", ("h", "b", "p@q#r")),
        ("h.example.org@b-1.x#Pool 1", ("h.example.org", "b-1.x", "Pool 1")),
        ("h@b#" + "p" * 251, ("h", "b", "p" * 251)),
    )
    @ddt.unpack
    def test_accepted(self, text: str, parts: tuple[str, str, str]) -> None:
        address = PoolAddress.parse(text)
        assert (address.host, address.backend, address.pool) == parts


def test_addresses_are_values() -> None:
    one, same, other = (PoolAddress.parse(text) for text in ("h@b#p", "h@b#p", "h@b#q"))
    assert one == same
    assert len({one, same, other}) == 2
    assert sorted([other, one]) == [one, other]
