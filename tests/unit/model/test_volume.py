"""What follows from a volume's record."""

from __future__ import annotations

import dataclasses
import unittest

import ddt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volmig.model import GIB, RequestContext, Volume


def volume(**fields: object) -> Volume:
    return Volume(**{"id": "an-id", "name": "data", "size_bytes": 1, "host": "h@b#p", **fields})  # type: ignore[arg-type]


@ddt.ddt
class Size(unittest.TestCase):
    @ddt.data((1, 1), (GIB - 1, 1), (GIB, 1), (GIB + 1, 2), (2 * GIB, 2), (2**60, 2**30), (2**52 + 1, 2**22 + 1))
    @ddt.unpack
    def test_gib_rounded_up(self, size_bytes: int, size: int) -> None:
        assert volume(size_bytes=size_bytes).size == size


@given(size_bytes=st.integers(1, 2**62))
def test_the_size_in_gib_always_suffices_and_never_by_more_than_one(size_bytes: int) -> None:
    size = volume(size_bytes=size_bytes).size
    assert size * GIB >= size_bytes
    assert (size - 1) * GIB < size_bytes


def test_the_backend_knows_it_by_its_id_unless_it_has_another_name() -> None:
    assert volume().backend_id == "an-id"
    assert volume(name_id="").backend_id == "an-id"
    assert volume(name_id="other").backend_id == "other"
    assert volume(name_id="other").backend_name == "volume-other"


def test_records_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        volume().host = "elsewhere"  # type: ignore[misc]


def test_requests_have_ids_of_their_own() -> None:
    assert RequestContext().request_id != RequestContext().request_id
