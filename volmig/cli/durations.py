"""Time spans as people write them: ``30s``, ``10m``, ``2h``, ``7d``."""

from __future__ import annotations

import re

from volmig import errors

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WRITTEN = re.compile(r"([0-9]{1,12})([smhd]?)")


def parse_duration(text: str) -> int:
    """Return the seconds that *text* denotes; a bare number is seconds.

    :raises volmig.errors.RequestInvalid: unless it is a whole number, with or without a unit.
    """
    written = _WRITTEN.fullmatch(text.strip().lower())
    if written is None:
        raise errors.RequestInvalid(
            what=f"The time span {text!r}",
            reason="it is not a whole number of seconds, minutes, hours or days",
            hint="Write 30s, 10m, 2h or 7d; a bare number is seconds.",
        )
    return int(written[1]) * _SECONDS[written[2] or "s"]
