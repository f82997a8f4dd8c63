"""``volmig doctor``."""

from __future__ import annotations

import argparse
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volmig.cli.base import ListCommand
from volmig.cli.report import ExitStatus, printable

if TYPE_CHECKING:
    from volmig.doctor import Finding, Mended, Report

_COLUMNS = (
    "severity",
    "code",
    "what",
    "where",
    "outcome",
    "explanation",
    "command",
    "safe",
    "volume_id",
    "migration_id",
)


class Found(enum.IntEnum):
    """Exit statuses that tell what was found, apart from those of errors."""

    WARNINGS = 10
    """There are warnings, and nothing worse."""
    CRITICAL = 11
    """There is something critical."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A finding, and what came of mending it."""

    finding: Finding
    outcome: str = ""
    is_left: bool = True


class Doctor(ListCommand):
    """Compare what is recorded with what is there, and tell what is lost, stuck or left over, and what settles it

    Nothing is changed without --fix. The exit status is 0 when there is nothing to do (findings of severity info do not
    count), 10 when there are warnings, and 11 when there is something critical; after --fix it tells what is left. A
    backend that is down is a warning, since what is in it was not examined.
    """

    columns = _COLUMNS
    brief = ("severity", "code", "what", "where", "outcome")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--fix",
            action="store_true",
            help="settle what is safe to settle: never delete what could be the only copy of anything",
        )
        parser.add_argument("--backend", metavar="NAME", help="examine only this backend")
        parser.add_argument("--volume", metavar="VOLUME", help="tell only of this volume (id, or unique name)")
        parser.add_argument(
            "--grace",
            type=_seconds,
            default=60.0,
            metavar="SECONDS",
            help="how long something must have been left alone before it counts as left over (default: %(default)g)",
        )
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Show what was found; the exit status tells how bad it is."""
        self._status: int = ExitStatus.SUCCESS
        self._rows: list[_Row] = []
        failed = super().run(parsed_args)
        return failed or self._status

    def items(self, parsed_args: argparse.Namespace) -> Iterable[Any]:
        """Examine, mend if that is wanted, and examine again what is left then."""
        with self.open_engine() as engine:

            def examine() -> Report:
                return engine.examine(
                    backend=parsed_args.backend, volume=parsed_args.volume, grace_seconds=parsed_args.grace
                )

            report = examine()
            mended: list[Mended] = []
            if parsed_args.fix and any(finding.safe for finding in report.findings):
                mended = engine.mend(report.findings, grace_seconds=parsed_args.grace)
                report = examine()
        self._rows = _rows(report.findings, mended)
        left = [row.finding for row in self._rows if row.is_left]
        self._status = _status(left)
        self.note(_summary(left, done=sum(each.done for each in mended)))
        if not left:
            self.note(
                f"{_count(report.volumes, 'volume')} on record, {_count(report.objects, 'object')} in "
                f"{_count(report.backends, 'backend')}."
            )
        return self._rows

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column."""
        if column == "outcome":
            return item.outcome
        if column == "command":
            return self.command(*item.finding.words)
        return getattr(item.finding, column)

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Iterable[Any]) -> int:
        """Write the list; for people, what each finding means stands below it."""
        is_explained = parsed_args.formatter == "table" and not parsed_args.columns and not parsed_args.long
        status = super().produce_output(parsed_args, column_names, data)
        if is_explained:
            for row in self._rows:
                if row.is_left:
                    self.app.stdout.writelines(f"{line}\n" for line in self._explanation(row))
        return int(status)

    def _explanation(self, row: _Row) -> Iterable[str]:
        finding = row.finding
        yield ""
        yield f"{finding.severity.value}: {finding.code.value}: {printable(finding.what)}"
        yield f"  {printable(finding.explanation)}"
        yield f"  {printable(self.command(*finding.words))}"


def _rows(left: Sequence[Finding], mended: Sequence[Mended]) -> list[_Row]:
    """Return what is left, with why it was not mended, and then what was."""
    failures = {each.finding.key: each.outcome for each in mended if not each.done}
    rows = [_Row(finding=finding, outcome=failures.pop(finding.key, "")) for finding in left]
    # What could not be mended may look different by now, or not count yet; it is not settled all the same.
    rows += [_Row(finding=each.finding, outcome=each.outcome) for each in mended if each.finding.key in failures]
    rows += [_Row(finding=each.finding, outcome=each.outcome, is_left=False) for each in mended if each.done]
    return rows


def _status(left: Sequence[Finding]) -> int:
    severities = {finding.severity.value for finding in left}
    if "critical" in severities:
        return Found.CRITICAL
    return Found.WARNINGS if "warning" in severities else ExitStatus.SUCCESS


def _summary(left: Sequence[Finding], *, done: int) -> str:
    by_severity = [
        (name, sum(each.severity.value == name for each in left)) for name in ("critical", "warning", "info")
    ]
    parts = [
        _count(number, name) if name == "warning" else f"{number} {name}" for name, number in by_severity if number
    ]
    found = f"{_count(len(left), 'finding')}: {', '.join(parts)}" if left else "Nothing was found"
    if done:
        found = f"{found} left" if left else "Nothing is left"
        return f"{found}; {done} {'was' if done == 1 else 'were'} mended."
    return f"{found}."


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 10 * 365 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
