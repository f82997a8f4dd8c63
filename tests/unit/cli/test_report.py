from __future__ import annotations

import io
import unittest

import ddt

from volmig import errors
from volmig.cli.report import ExitStatus, error_lines, exit_status, printable, report


@ddt.ddt
class TestExitStatus(unittest.TestCase):
    @ddt.data(
        (errors.VolumeNotFound(volume="v"), 2),
        (errors.SizeInvalid(value="x", reason="y"), 2),
        (errors.ProgramMissing(program="dd", package="coreutils"), 3),
        (errors.StoreBusy(database="d", seconds=1), 4),
        (errors.DiskFull(path="p", offset=1), 5),
        (errors.InternalError(reason="r"), 6),
        (errors.MigrationCancelled(migration="m", requested_by="me"), 130),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 6),
        (OSError(5, "Input/output error"), 6),
    )
    @ddt.unpack
    def test_follows_what_the_caller_can_do(self, error: BaseException, expected: int) -> None:
        assert exit_status(error) == expected

    def test_every_error_of_the_catalogue_has_a_status_of_its_category(self) -> None:
        expected = {
            errors.RequestError: 2,
            errors.ConfigurationError: 3,
            errors.TemporaryError: 4,
            errors.OperatorError: 5,
            errors.BugError: 6,
            errors.CancelledError: 130,
        }
        seen = 0
        for cls in errors.catalogue():
            error = cls(**dict.fromkeys(cls.field_names(), 1))
            category = next(known for known in expected if issubclass(cls, known))
            assert exit_status(error) == expected[category], cls
            seen += 1
        assert seen > 30


def test_an_error_is_one_line_with_its_code_and_one_with_the_hint() -> None:
    said = error_lines(errors.VolumeNotFound(volume="web"))
    assert said == [
        "volmig: There is no volume 'web'. [volume-not-found]",
        "hint: `volmig volume list` shows the volumes of this store.",
    ]


def test_an_error_without_hint_is_one_line() -> None:
    assert error_lines(errors.VolumeNotFound(volume="web", hint="")) == [
        "volmig: There is no volume 'web'. [volume-not-found]"
    ]


def test_control_characters_and_line_breaks_do_not_reach_the_terminal() -> None:
    said = error_lines(errors.TransferFailed(path="a\x1b[2Jb", offset=1, reason="first\nsecond"))
    assert "\x1b" not in "".join(said)
    assert "a\\x1b[2Jb" in said[0]
    assert "first\\nsecond" in said[0]
    assert printable("für é 中") == "für é 中"


def test_an_unforeseen_error_names_itself_and_the_way_to_its_details() -> None:
    said = error_lines(ValueError("bad\nthing"))
    assert said[0] == "volmig: unexpected ValueError: bad thing [unexpected]"
    assert "--debug" in said[1]


def test_the_traceback_is_shown_with_debug_only() -> None:
    def written(*, debug: bool) -> str:
        stream = io.StringIO()
        error = errors.DriverFailed(backend="b", method="m", reason="r")
        error.__cause__ = OSError("inner cause")
        assert report(error, stream, debug=debug) is ExitStatus.OPERATOR
        return stream.getvalue()

    assert "Traceback" not in written(debug=False)
    assert "direct cause" in written(debug=True)
    assert "inner cause" in written(debug=True)
    assert written(debug=True).endswith("".join(f"{line}\n" for line in written(debug=False).splitlines()))
