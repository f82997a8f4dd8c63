"""Where the documentation is."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "doc" / "source"
EXTENSIONS = PAGES / "_ext"
EXAMPLES = PAGES / "examples"
NOTES = ROOT / "releasenotes" / "notes"
SAMPLE = ROOT / "etc" / "volmig" / "volmig.conf.sample"
GENERATOR = ROOT / "etc" / "volmig" / "config-generator.conf"
