"""Output and marks are told apart, wherever the stream is cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.testing.vm.marks import Mark, MarkReader

TOKEN = "0123456789abcdef"  # noqa: S105
_NAMES = st.text("abcdefghij-0123456789", min_size=1, max_size=8)
_MARKS = st.builds(Mark, name=_NAMES, value=st.text("abc: 123(/)", max_size=12))
# Output that looks much like a mark: parts of its beginning, and NUL bytes.
_OUTPUT = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"\0", b"\0" + TOKEN.encode(), b"\0" + TOKEN[:5].encode(), b"\0\0\0"])
)
_WHOLE = b"\0" + TOKEN.encode() + b":"


def _encoded(piece):
    return piece if isinstance(piece, bytes) else _WHOLE + f"{piece.name}:{piece.value}".encode() + b"\0"


def _merged(pieces):
    merged = [b""]
    for piece in pieces:
        if isinstance(piece, bytes) and isinstance(merged[-1], bytes):
            merged[-1] += piece
        else:
            merged.append(piece)
    return [piece for piece in merged if piece != b""]


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.one_of(_OUTPUT, _MARKS), max_size=8), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5)
)
def test_what_went_in_comes_out_however_the_stream_is_cut(pieces, cuts):
    stream = b"".join(_encoded(piece) for piece in pieces)
    reader, seen, at, turn = MarkReader(TOKEN), [], 0, 0
    while at < len(stream):
        length = cuts[turn % len(cuts)]
        seen += reader.feed(stream[at : at + length])
        at, turn = at + length, turn + 1
    seen.append(reader.finish())
    assert _merged(seen) == _merged(pieces)


def test_output_is_not_held_back_unless_it_may_begin_a_mark():
    reader = MarkReader(TOKEN)
    assert list(reader.feed(b"a prompt without an end of line> ")) == [b"a prompt without an end of line> "]
    assert list(reader.feed(b"x\0" + TOKEN[:3].encode())) == [b"x"]
    assert list(reader.feed(b"!")) == [b"\0" + TOKEN[:3].encode() + b"!"]


def test_a_mark_of_another_boot_is_output():
    line = b"\0" + TOKEN[::-1].encode() + b":end-1:0\0"
    reader = MarkReader(TOKEN)
    assert b"".join([*reader.feed(line), reader.finish()]) == line
