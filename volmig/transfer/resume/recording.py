"""Checkpoints as bytes, for a file or a column of a database.

The form is JSON, with the number of the format and a digest of the content. What does not decode to exactly what was
encoded is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from volmig import errors
from volmig.transfer.base import Checkpoint, EndMark

LARGEST_BYTES = 16 * 1024 * 1024
"""More than any checkpoint takes: the digests of 65,536 segments take 3 MiB."""

_FORMAT = 1
_MARKER = "volmig_checkpoint"
_NONE_OF_OURS = "it is damaged, or no checkpoint of volmig"
_OUTER = frozenset({_MARKER, "sha256", "content"})
_RECORD = frozenset({"generation", "destination", "checkpoint"})
_CHECKPOINT = frozenset(
    {
        "size_bytes",
        "position_bytes",
        "generation",
        "source",
        "destination",
        "digest_algorithm",
        "segments",
    }
)
_MARK = frozenset({"identity", "version"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is kept of a copy: which run has it, what it writes to, and what it has finished."""

    generation: int
    """Number of the run that recorded itself last."""
    destination: tuple[str, ...] | None = None
    """Identity of the destination, as in :class:`volmig.transfer.base.EndMark`, once it is known."""
    checkpoint: Checkpoint | None = None


def encode(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as bytes, which :func:`decode` takes back."""
    return encode_record(
        Record(generation=checkpoint.generation, destination=checkpoint.destination.identity, checkpoint=checkpoint)
    )


def decode(data: bytes, name: str = "the checkpoint") -> Checkpoint:
    """Return the checkpoint that :func:`encode` made bytes of.

    :param name: what to call it in messages.
    :raises volmig.errors.CheckpointUnusable: when it is anything else, damaged, or of a newer volmig.
    """
    record = decode_record(data, name)
    if record.checkpoint is None:
        raise errors.CheckpointUnusable(path=name, reason="nothing was copied yet when it was written")
    return record.checkpoint


def encode_record(record: Record) -> bytes:
    """Return a record as bytes, which :func:`decode_record` takes back."""
    checkpoint = record.checkpoint
    content = {
        "generation": record.generation,
        "destination": _plain_tuple(record.destination),
        "checkpoint": None if checkpoint is None else _plain(checkpoint),
    }
    outer = {_MARKER: _FORMAT, "sha256": _digest(content), "content": content}
    return json.dumps(outer, indent=1).encode() + b"\n"


def decode_record(data: bytes, name: str) -> Record:
    """Return the record that :func:`encode_record` made bytes of; *name* is what to call it in messages.

    :raises volmig.errors.CheckpointUnusable: when it is anything else, damaged, or of a newer volmig.
    """
    try:
        return _record(_content(data))
    except _Refusal as exc:
        raise errors.CheckpointUnusable(path=name, reason=str(exc)) from exc
    except RecursionError as exc:
        raise errors.CheckpointUnusable(path=name, reason=_NONE_OF_OURS) from exc


class _Refusal(Exception):
    """Why something is no record."""


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "size_bytes": checkpoint.size_bytes,
        "position_bytes": checkpoint.position_bytes,
        "generation": checkpoint.generation,
        "source": _plain_mark(checkpoint.source),
        "destination": _plain_mark(checkpoint.destination),
        "digest_algorithm": checkpoint.digest_algorithm,
        "segments": base64.b64encode(checkpoint.segments).decode("ascii"),
    }


def _plain_mark(mark: EndMark) -> dict[str, Any]:
    return {"identity": _plain_tuple(mark.identity), "version": _plain_tuple(mark.version)}


def _plain_tuple(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _content(data: bytes) -> object:
    """Return what is inside, after checking that it is whole."""
    if not data:
        raise _Refusal("it is empty")
    if len(data) > LARGEST_BYTES:
        raise _Refusal(f"it is larger than {LARGEST_BYTES} bytes")
    try:
        outer = json.loads(data, object_pairs_hook=_object, parse_float=_no_number, parse_constant=_no_number)
    except _Refusal:
        raise
    except ValueError as exc:
        raise _Refusal(_NONE_OF_OURS) from exc
    if not isinstance(outer, dict) or _MARKER not in outer:
        raise _Refusal("it is no checkpoint of volmig")
    version = outer[_MARKER]
    if _is_count(version) and version > _FORMAT:
        raise _Refusal(f"a newer volmig wrote it (format {version}; this one knows {_FORMAT})")
    if version != _FORMAT or version is True or outer.keys() != _OUTER or outer["sha256"] != _digest(outer["content"]):
        raise _Refusal("it is damaged")
    return outer["content"]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refusal("it is damaged: a name stands in it twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise _Refusal(f"it is damaged: {text[:20]} stands in it")


def _record(content: object) -> Record:
    fields = _fields(content, _RECORD)
    checkpoint = fields["checkpoint"]
    return Record(
        generation=_count(fields, "generation", least=1),
        destination=_texts(fields["destination"]),
        checkpoint=None if checkpoint is None else _checkpoint(_fields(checkpoint, _CHECKPOINT)),
    )


def _checkpoint(fields: Mapping[str, Any]) -> Checkpoint:
    checkpoint = Checkpoint(
        size_bytes=_count(fields, "size_bytes"),
        position_bytes=_count(fields, "position_bytes"),
        generation=_count(fields, "generation", least=1),
        source=_mark(fields["source"]),
        destination=_mark(fields["destination"]),
        digest_algorithm=_text(fields["digest_algorithm"]),
        segments=_segments(fields["segments"]),
    )
    if checkpoint.position_bytes > checkpoint.size_bytes:
        raise _Refusal("its position is behind the end of the copy")
    if checkpoint.segments and not checkpoint.digest_algorithm:
        raise _Refusal("it has digests without the name of their algorithm")
    return checkpoint


def _mark(value: object) -> EndMark:
    fields = _fields(value, _MARK)
    version = fields["version"]
    if version is not None and not (isinstance(version, list) and all(type(item) is int for item in version)):
        raise _Refusal("it is damaged: the version of an end")
    return EndMark(identity=_texts(fields["identity"]), version=None if version is None else tuple(version))


def _fields(value: object, names: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise _Refusal(f"it does not have the fields {', '.join(sorted(names))}")
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _count(fields: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = fields[name]
    if not _is_count(value) or value < least:
        raise _Refusal(f"its {name} is no number of at least {least}")
    return int(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Refusal("it is damaged: a text is none")
    return value


def _texts(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _Refusal("it is damaged: the identity of an end")
    return tuple(_text(item) for item in value)


def _segments(value: object) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _Refusal("it is damaged: its digests") from exc
