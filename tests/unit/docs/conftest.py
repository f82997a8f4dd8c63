"""Make the documentation's own code importable: its reference generators and its examples."""

from __future__ import annotations

import sys

from .places import EXAMPLES, EXTENSIONS

sys.path[:0] = [str(EXTENSIONS), str(EXAMPLES)]
