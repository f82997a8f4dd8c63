"""The tables, for people and for the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.transfer import __main__ as command
from benchmarks.transfer import report
from benchmarks.transfer.peers import DD, OURS, OURS_DIGEST
from benchmarks.transfer.shapes import SHAPES

from .fabricated import results


def _made():
    return results(
        {OURS: [1.0, 2.0], OURS_DIGEST: [2.0], DD: [8.0], "cp": [3.0]}, errors={"qemu-img": "no *such* file"}
    )


def test_text_has_every_figure():
    said = report.text(_made())
    lines = {line[2:].split("  ")[0]: line for line in said.splitlines()}
    assert lines["volmig, verify=none"].split()[3:7] == ["1.50", "1.00–2.00", "2.00", "5.33"]  # noqa: RUF001
    assert lines["volmig, verify=none"].startswith(">")
    assert lines["cp --sparse=auto"].startswith("*")
    assert "qemu-img convert: FAILED: no *such* file" in said
    assert "MISSED  dense     file  wall that verify=digest adds: 33%" not in said
    assert "met     dense     file  wall that verify=digest adds: 33% (at most 35%)" in said
    assert "2.00 s for a copy of 2 GiB" in said
    assert "Debian package libnbd-bin" in said
    assert "volmig: threads" in said


def test_rst_has_the_picture_and_nothing_that_it_would_take_for_markup():
    page = report.rst(_made(), picture="_static/performance.png")
    assert ".. image:: _static/performance.png\n" in page
    assert ":processor: one\\_fast\\|two\\_slow\n" in page
    assert "qemu-img convert failed: no \\*such\\* file\n" in page
    assert "   * - **volmig, verify=none**\n     - 1.50\n" in page
    assert ".. image::" not in report.rst(_made(), picture="")


def test_all_rows_of_a_table_have_as_many_cells():
    page = report.rst(_made(), picture="")
    for table in page.split(".. list-table::")[1:]:
        rows = table.split("\n\n")[1].split("   * - ")[1:]
        assert len(rows) > 1
        assert len({row.count("\n     - ") for row in rows} | {row.rstrip().count("\n     -") for row in rows}) == 1


def test_the_picture_is_named_from_the_page():
    assert report.relative(Path("doc/_static/a.png"), Path("doc/page.inc")) == "_static/a.png"
    assert report.relative(None, Path("doc/page.inc")) == ""


def test_stored_results_are_told_again_and_failures_show_in_the_status(tmp_path, capsys):
    (stored := tmp_path / "stored.json").write_text(_made().to_json())
    page = tmp_path / "page.inc"
    assert command.main(["--load", str(stored), "--rst", str(page)]) == 1
    assert capsys.readouterr().out == report.text(_made())
    assert page.read_text() == report.rst(_made(), picture="")
    stored.write_text(results({OURS: [1.0]}).to_json())
    assert command.main(["--load", str(stored)]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "3MiB"], "--size must be a multiple"),
        (["--size", "much"], "not a number"),
        (["--size", "1EiB"], "are needed; choose a smaller --size"),
        (["--repeats", "0"], "--repeats must be 1 or more"),
        (["--shapes", "dense,round"], f"round: not of {', '.join(shape.name for shape in SHAPES)}"),
        (["--peers", ","], "nothing: not of"),
        (["--directory", "nowhere/at/all"], "is no directory"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.machine, "MEMORY_FILE_SYSTEMS", frozenset())
    with pytest.raises(SystemExit) as raised:
        command.main(["--directory", str(tmp_path), *words])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
