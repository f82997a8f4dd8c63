"""What every entrance of this package does with what it is asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from volmig import errors
from volmig.transfer.base import CopyOptions
from volmig.transfer.control import Control

RAW = "raw"

_STEP_BYTES = 4096
_LARGEST_CHUNK_BYTES = 1024 * 1024


def unwatched(*_: object) -> None:
    """Do nothing: the callback of those who want to know nothing."""


def check_request(size_bytes: int, options: CopyOptions) -> None:
    """Check what can be checked without looking at the ends.

    :raises volmig.errors.SizeInvalid:
    :raises volmig.errors.RequestInvalid:
    """
    if not _is_whole(size_bytes):
        raise errors.SizeInvalid(value=size_bytes, reason="it is no whole number")
    if size_bytes < 0:
        raise errors.SizeInvalid(value=size_bytes, reason="it is negative")
    _check_types(options)
    if options.bandwidth_limit_bytes < 0:
        raise errors.RequestInvalid(
            what="bandwidth_limit_bytes", reason=f"{options.bandwidth_limit_bytes} is negative; 0 means no limit"
        )
    chunk = options.chunk_bytes
    if chunk % _STEP_BYTES or not _STEP_BYTES <= chunk <= _LARGEST_CHUNK_BYTES:
        raise errors.RequestInvalid(
            what="chunk_bytes",
            reason=f"{chunk} is not a multiple of {_STEP_BYTES} between {_STEP_BYTES} and {_LARGEST_CHUNK_BYTES}",
        )


def _check_types(options: CopyOptions) -> None:
    """Check that each field is what it should be, before something else is made of it."""

    def check(fields: tuple[str, ...], fits: Callable[[object], bool], kind: str) -> None:
        for name in fields:
            value = getattr(options, name)
            if not fits(value):
                raise errors.RequestInvalid(what=name, reason=f"{value!r} is no {kind}")

    check(("chunk_bytes", "bandwidth_limit_bytes"), _is_whole, "whole number")
    check(("engine", "source_format", "destination_format"), lambda value: isinstance(value, str), "string")
    check(("destination_is_zero", "ignore_header"), lambda value: isinstance(value, bool), "truth value")
    check(("backing_directories",), _are_paths, "tuple of paths")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_paths(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(item, str | os.PathLike) for item in value)


def agree_on_limit(options: CopyOptions, control: Control) -> CopyOptions:
    """Set the options' bandwidth limit on a control that has none; return the options with the control's."""
    if options.bandwidth_limit_bytes and not control.limit_bytes:
        control.limit_bytes = options.bandwidth_limit_bytes
    return dataclasses.replace(options, bandwidth_limit_bytes=control.limit_bytes)


def refuse_images(options: CopyOptions) -> str:
    """Return why an engine that copies bytes as they are cannot serve; empty when both ends are raw."""
    if options.source_format == options.destination_format == RAW:
        return ""
    if options.source_format == options.destination_format:
        return f"it copies raw volumes, and not images such as {options.source_format!r}"
    return (
        f"it copies bytes as they are, and does not turn the format {options.source_format!r} "
        f"into {options.destination_format!r}"
    )
