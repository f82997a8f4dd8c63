"""The doctor's page tells of everything that can be found."""

from __future__ import annotations

import re
from pathlib import Path

from volmig.cli.doctor import Found
from volmig.doctor import Code

PAGE = Path(__file__).resolve().parents[3] / "doc" / "source" / "doctor.rst"


def test_each_code_is_there_with_its_severity():
    told = re.findall(r"^   \* - ``([a-z-]+)``\n     - ([a-z]+)\n", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(told) == {code.value: code.severity.value for code in Code}
    assert len(told) == len(Code)


def test_each_exit_status_is_there():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"   * - {int(status)}\n" in text for status in Found)
