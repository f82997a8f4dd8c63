"""Sizes and rates as people write and read them.

Units are binary throughout, as in dd and qemu-img: ``1K`` and ``1KiB`` are both 1024 bytes. ``KB``, ``MB`` and ``GB``
mean either 1000 or 1024 depending on whom one asks; they are refused rather than guessed.
"""

from __future__ import annotations

import re

from volmig import errors

MAX_BYTES = 2**63 - 1
"""The largest size that a file or a block device can have."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_FACTORS: dict[str, int] = {
    **{unit.lower(): 1024**power for power, unit in enumerate(_UNITS)},
    **{unit[0].lower(): 1024**power for power, unit in enumerate(_UNITS)},
}
_DECIMAL = frozenset({"kb", "mb", "gb", "tb", "pb", "eb"})
_WRITTEN = re.compile(r"(?P<sign>[+-]?)(?P<number>[0-9]+)(?P<fraction>[.,][0-9]*)?\s*(?P<unit>[A-Za-z]*)")


def parse_size(text: str) -> int:
    """Return the bytes that *text* denotes: ``10GiB``, ``512M``, ``1000B``; a bare number is GiB, as in Cinder.

    :raises volmig.errors.SizeInvalid: unless it is a positive whole number of a known unit, up to 8 EiB - 1 B.
    """
    return _parse(text, bare="gib")


def parse_rate(text: str) -> int:
    """Return the bytes a second that *text* denotes: ``50MiB`` or ``50MiB/s``. A bare number is refused.

    :raises volmig.errors.SizeInvalid: as :func:`parse_size`.
    """
    stripped = text.strip()
    return _parse(stripped[:-2] if stripped.endswith("/s") else stripped, bare=None)


def parse_limit(text: str) -> int:
    """Return a rate as :func:`parse_rate` does, or 0, for no limit, when *text* is ``0``."""
    return 0 if text.strip() == "0" else parse_rate(text)


def _parse(text: str, *, bare: str | None) -> int:
    def refuse(reason: str) -> errors.SizeInvalid:
        return errors.SizeInvalid(value=text, reason=reason)

    written = _WRITTEN.fullmatch(text.strip(" "))
    if not written:
        raise refuse("it is not a number with a unit")
    unit = written["unit"].lower()
    if written["fraction"] is not None:
        raise refuse("it has a fraction; write a whole number of a smaller unit")
    if written["sign"]:
        raise refuse("it has a sign")
    if unit in _DECIMAL:
        raise refuse(f"{written['unit']} is ambiguous; write {unit[0].upper()}iB for units of 1024")
    if not unit:
        if bare is None:
            raise refuse("it has no unit")
        unit = bare
    if unit not in _FACTORS:
        raise refuse(f"{written['unit']!r} is not a unit")
    if len(written["number"].lstrip("0")) > len(str(MAX_BYTES)):
        raise refuse("it is more than 8 EiB")
    size_bytes = int(written["number"]) * _FACTORS[unit]
    if size_bytes == 0:
        raise refuse("it is zero")
    if size_bytes > MAX_BYTES:
        raise refuse("it is more than 8 EiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Return the exact size in the largest unit that it is a whole number of: ``10 GiB``, ``1000 B``.

    :func:`parse_size` takes every answer back to the same number.
    """
    amount, power = size_bytes, 0
    while amount and amount % 1024 == 0 and power < len(_UNITS) - 1:
        amount, power = amount // 1024, power + 1
    return f"{amount} {_UNITS[power]}"


def format_approximate(size_bytes: float) -> str:
    """Return the size to about three digits, for capacities and progress: ``114 GiB``, ``1.52 MiB``."""
    amount, power = float(size_bytes), 0
    # Half a unit below 1000 would be rounded up to four digits.
    while abs(amount) >= 999.5 and power < len(_UNITS) - 1:
        amount, power = amount / 1024, power + 1
    if power == 0:
        return f"{amount:.0f} B"
    digits = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{digits}f} {_UNITS[power]}"


def format_rate(rate_bytes: float) -> str:
    """Return a rate to about three digits: ``312 MiB/s``."""
    return f"{format_approximate(rate_bytes)}/s"


def format_duration(seconds: float) -> str:
    """Return a time span: ``0:07``, ``12:30``, ``1:02:03``, ``2 d 01:00:00``."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds_left = divmod(rest, 60)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{seconds_left:02}"
    if hours:
        return f"{hours}:{minutes:02}:{seconds_left:02}"
    return f"{minutes}:{seconds_left:02}"
