"""Configuration of Sphinx. Building needs the extras ``cli`` and ``testing``, and no network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from volmig import __version__

project = "volmig"
author = "volmig developers"
project_copyright = "volmig developers"
version = __version__
release = __version__

extensions = ["sphinx.ext.autodoc", "volmigdoc.extension"]
exclude_patterns = ["_ext", "examples"]
templates_path: list[str] = []
nitpicky = False
default_role = "code"
smartquotes = False
highlight_language = "default"

autodoc_default_options = {"show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False

html_theme = "alabaster"
html_theme_options = {
    "description": "Moves storage volumes between any two backends",
    "fixed_sidebar": True,
    "page_width": "1200px",
    "body_max_width": "940px",
    "sidebar_width": "210px",
    "show_powered_by": False,
}
html_static_path = ["_static"]
html_css_files = ["volmig.css"]
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
