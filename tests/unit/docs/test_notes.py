"""Release notes are shown from their files, with or without reno's cache."""

from __future__ import annotations

import pytest
import yaml
from volmigdoc import notes

from volmig import __version__

from .places import NOTES


def test_present_notes_are_shown_whole():
    text = "\n".join(notes.note_lines(NOTES, __version__))
    assert text.startswith(f"{__version__}\n---")
    for path in NOTES.glob("*.yaml"):
        for content in yaml.safe_load(path.read_text()).values():
            for item in [content] if isinstance(content, str) else content:
                assert item.strip().splitlines()[0] in text


def test_released_notes_stay_with_their_release(tmp_path):
    (tmp_path / "old-0000000000000001.yaml").write_text("features:\n  - |\n    An old thing\n    in two lines.\n")
    (tmp_path / "new-0000000000000002.yaml").write_text("fixes:\n  - A new thing.\n")
    cached = {"notes": [{"version": "1.0.0", "files": [["releasenotes/notes/old-0000000000000001.yaml", "abc"]]}]}
    (tmp_path / "reno.cache").write_text(yaml.safe_dump(cached))
    text = "\n".join(notes.note_lines(tmp_path, "1.1.0"))
    assert text.index("1.1.0\n-----") < text.index("* A new thing.") < text.index("1.0.0\n-----")
    assert "* An old thing\n  in two lines." in text
    assert "New\n^^^" in text
    assert "Fixes\n^^^^^" in text


def test_unknown_section_is_refused(tmp_path):
    (tmp_path / "odd.yaml").write_text("feature:\n  - A thing.\n")
    with pytest.raises(ValueError, match=r"odd\.yaml is not a release note: unknown sections"):
        notes.note_lines(tmp_path, "1")
