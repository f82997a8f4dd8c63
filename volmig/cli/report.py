"""What volmig's executables say and return when something goes wrong."""

from __future__ import annotations

import enum
import traceback
from typing import TextIO

from volmig import errors


class ExitStatus(enum.IntEnum):
    """Exit statuses; the same for every command and for the worker."""

    SUCCESS = 0
    """Everything that was asked for has been done."""
    USAGE = 2
    """The request or the command line is wrong. Nothing was changed, or what was begun has been undone."""
    CONFIGURATION = 3
    """A setting, a plugin or an installed program is wrong."""
    TEMPORARY = 4
    """Try again later."""
    OPERATOR = 5
    """Storage failed or is not as recorded; somebody has to look at it."""
    BUG = 6
    """volmig or a driver broke its own rules, or something happened that nobody foresaw."""
    CANCELLED = 130
    """Stopped on request, or by Ctrl-C."""
    CLOSED_PIPE = 141
    """Whoever read the output went away."""


_BY_CATEGORY: tuple[tuple[type[errors.VolmigError], ExitStatus], ...] = (
    (errors.RequestError, ExitStatus.USAGE),
    (errors.ConfigurationError, ExitStatus.CONFIGURATION),
    (errors.TemporaryError, ExitStatus.TEMPORARY),
    (errors.OperatorError, ExitStatus.OPERATOR),
    (errors.CancelledError, ExitStatus.CANCELLED),
)

_UNEXPECTED_HINT = "This was not foreseen; run the same command with --debug for the details, and please report it."


def exit_status(error: BaseException) -> ExitStatus:
    """Return the exit status that tells of *error*."""
    if isinstance(error, KeyboardInterrupt):
        return ExitStatus.CANCELLED
    for category, status in _BY_CATEGORY:
        if isinstance(error, category):
            return status
    return ExitStatus.BUG


def printable(text: object) -> str:
    """Return *text* on one line and without control characters, which could disturb a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def error_lines(error: BaseException) -> list[str]:
    """Return the line that says what happened, and the one that says what to do, if there is something."""
    if isinstance(error, errors.VolmigError):
        return lines(error.message, error.code, error.hint)
    if isinstance(error, KeyboardInterrupt):
        return lines("Interrupted.", "interrupted", "")
    told = " ".join(str(error).split())
    return lines(f"unexpected {type(error).__name__}{': ' if told else ''}{told}", "unexpected", _UNEXPECTED_HINT)


def lines(message: str, code: str, hint: str) -> list[str]:
    """Return a message in the form in which all errors are shown."""
    said = [f"volmig: {printable(message)} [{code}]"]
    if hint:
        said.append(f"hint: {printable(hint)}")
    return said


def report(error: BaseException, stream: TextIO, *, debug: bool = False) -> ExitStatus:
    """Write *error* to *stream*, with its traceback when *debug* is set, and return the exit status for it."""
    if debug:
        stream.write("".join(traceback.format_exception(error)))
    stream.write("".join(f"{line}\n" for line in error_lines(error)))
    stream.flush()
    return exit_status(error)
