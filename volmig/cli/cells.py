"""How values stand in the output: plain for programs, readable in tables."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cliff.columns import FormattableColumn

from volmig.cli import sizes
from volmig.cli.report import printable

_APPROXIMATE = frozenset(
    {
        "total_capacity_bytes",
        "free_capacity_bytes",
        "provisioned_capacity_bytes",
        "reserved_bytes",
        "available_bytes",
    }
)


def plain(value: Any) -> Any:
    """Return *value* as numbers, text, lists and dictionaries, which every format can hold."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    return value


class Cell(FormattableColumn[Any]):
    """One place in a table: sorts and compares by its value, and shows it to people."""

    def __init__(self, value: Any, show: Callable[[Any], str]) -> None:
        super().__init__(value)
        self._show = show

    def human_readable(self) -> str:
        """Return the value for the eye; ``-`` stands for nothing."""
        return "-" if self._value is None or self._value in ("", [], {}) else self._show(self._value)


def cell(column: str, value: Any) -> Any:
    """Return *value* as it stands in a table's column of that name."""
    return Cell(plain(value), _shower(column))


def _shower(column: str) -> Callable[[Any], str]:
    if column == "rate_bytes":
        return sizes.format_rate
    if column == "bandwidth_limit_bytes":
        return lambda value: sizes.format_rate(value) if value else "none"
    if column in _APPROXIMATE:
        return sizes.format_approximate
    if column.endswith("_bytes") or column in ("bytes_done", "bytes_total"):
        return sizes.format_size
    if column.endswith("_seconds"):
        return sizes.format_duration
    return show


def show(value: Any) -> str:
    """Return a plain value in a line: pairs as ``key=value``, several things with commas between them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{printable(key)}={show(item)}" for key, item in value.items() if item not in ("", None))
    if isinstance(value, list):
        return "; ".join(show(item) for item in value)
    return printable(value)
