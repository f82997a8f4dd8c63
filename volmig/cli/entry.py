"""Where the command ``volmig`` begins.

The command line needs packages that the library does without. This module imports none of them, so that it can say
which is missing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from volmig.cli.report import ExitStatus, lines

_NEEDED = ("cliff", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (that of the process unless given) and return the exit status."""
    # All are looked for at once: rich is imported late, when a migration may be running already.
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(missing)
        message = f"The command line needs {packages}, which {'is' if len(missing) == 1 else 'are'} not installed."
        said = lines(message, "cli-not-installed", "Install it with: pip install 'volmig[cli]'")
        if sys.stderr is not None:
            sys.stderr.write("".join(f"{line}\n" for line in said))
        return ExitStatus.CONFIGURATION
    from volmig.cli import app

    return app.main(argv)
