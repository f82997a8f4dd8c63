"""What a copy is asked for is what it does, or an error."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from volmig import errors
from volmig.transfer import CopyOptions, Tail, Verify, copy, digest_of

from .fakes import Handle, pattern

MIB = 1024 * 1024


def test_choices_may_be_given_as_strings(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(pattern(MIB))
    destination.write_bytes(b"x" * 2 * MIB)
    options = CopyOptions(tail="zero", verify="compare")  # type: ignore[arg-type]
    assert options.tail is Tail.ZERO
    assert copy(source, destination, size_bytes=MIB, options=options).verify is Verify.COMPARE
    assert destination.read_bytes() == pattern(MIB) + bytes(MIB)
    unverified = dataclasses.replace(options, verify="none")  # type: ignore[arg-type]
    assert copy(source, destination, size_bytes=MIB, options=unverified).destination_digest == ""


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("verify", "Digest", "'none', 'digest', 'compare'"),
        ("verify", "", "'none', 'digest', 'compare'"),
        ("verify", None, "'none', 'digest', 'compare'"),
        ("verify", Tail.ZERO, "'none', 'digest', 'compare'"),
        ("tail", "trim", "'keep', 'zero'"),
        ("tail", False, "'keep', 'zero'"),
    ],
)
def test_there_are_no_other_choices(name: str, value: Any, known: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=known) as raised:
        CopyOptions(**{name: value})
    assert raised.value.fields["what"] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bandwidth_limit_bytes", -1),
        ("bandwidth_limit_bytes", 1.5),
        ("bandwidth_limit_bytes", None),
        ("chunk_bytes", "65536"),
        ("chunk_bytes", True),
        ("engine", None),
        ("source_format", 7),
        ("destination_format", None),
        ("destination_is_zero", "no"),
        ("ignore_header", 1),
        ("backing_directories", "/images"),
        ("backing_directories", (1,)),
    ],
)
def test_fields_of_a_wrong_kind(name: str, value: Any) -> None:
    destination: Any = Handle(b"\xee" * MIB)
    with pytest.raises(errors.RequestInvalid) as raised:
        copy(Handle(pattern(MIB)), destination, size_bytes=MIB, options=CopyOptions(**{name: value}))  # type: ignore[arg-type]
    assert raised.value.fields["what"] == name
    assert destination.content == b"\xee" * MIB


@pytest.mark.parametrize("size", [1.0, "1", True, -1])
def test_sizes_of_a_wrong_kind(size: Any) -> None:
    with pytest.raises(errors.SizeInvalid):
        digest_of(Handle(pattern(MIB)), size_bytes=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["a+b", "buffered", "descriptor", "no descriptor"])
def test_a_handle_that_appends_is_no_destination(tmp_path: Path, how: str) -> None:
    path = tmp_path / "destination"
    path.write_bytes(b"x" * MIB)

    class Wrapped(Handle):
        mode = "a+b"

    if how == "no descriptor":
        handle: Any = Wrapped(bytes(MIB))
    elif how == "descriptor":
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND), "r+b", buffering=0)
    else:
        handle = path.open("a+b", buffering=0 if how == "a+b" else -1)
    try:
        for verify in (Verify.NONE, Verify.DIGEST):
            with pytest.raises(errors.RequestInvalid, match="appends"):
                copy(Handle(pattern(MIB)), handle, size_bytes=MIB, options=CopyOptions(verify=verify))  # type: ignore[arg-type]
        # It can be read, all the same.
        assert digest_of(handle, size_bytes=MIB)
    finally:
        if how != "no descriptor":
            handle.close()
    assert path.read_bytes() == b"x" * MIB
