"""``python -m volmig.cli`` is the same as ``volmig``."""

from __future__ import annotations

import sys

from volmig.cli.entry import main

sys.exit(main())
