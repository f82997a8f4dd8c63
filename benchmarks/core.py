"""Measure the core: its import, its size on disk, and what one migration costs beside the copying.

    python -m benchmarks.core             # tables
    python -m benchmarks.core --json      # the same, for programs

The overhead is that of a whole migration of an empty volume between two pools of the fake driver, with a SQLite
database on disk whose every commit is synchronous. It is measured with 100 and with 10,000 volumes on record.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import volmig.conf
from benchmarks.store import LARGE, SMALL, Size, fill
from volmig import Engine
from volmig.store import VolumeQuery
from volmig.store.sql import SqlStore

SIZE_BYTES = 1024 * 1024
IMPORTS = {
    "volmig": "import volmig",
    "volmig.Engine": "from volmig import Engine",
    "volmig.Engine with its SQL store": "from volmig import Engine; import volmig.store.sql",
    "the command line": "import volmig.cli.app",
}


def import_seconds(statement: str, runs: int) -> float:
    """Return the median time of an import in a fresh interpreter, without the interpreter's own start."""
    program = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    times = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return statistics.median(times)


def core_distributions() -> list[str]:
    """Return the names of all distributions that an installation without extras needs, volmig included."""
    found: set[str] = set()
    pending = ["volmig"]
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # only for another platform or an older Python
        found.add(name)
        pending.extend(
            re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line
        )
    return sorted(found)


def overhead(size: Size, runs: int, directory: Path) -> dict[str, float]:
    """Return medians in milliseconds, with *size* volumes and migrations on record."""
    directory.mkdir()
    database = f"sqlite:///{directory}/volmig.db"
    store = SqlStore(database)
    fill(store, size)
    store.close()
    conf = volmig.conf.load(
        [],
        overrides={
            "DEFAULT": {"enabled_backends": ["fake"], "host": "bench", "state_path": str(directory)},
            "database": {"connection": database},
            "fake": {"volume_driver": "fake", "fake_pools": ["one", "two"]},
        },
    )
    pools = ("bench@fake#one", "bench@fake#two")
    measured: dict[str, list[float]] = {"driver": [], "host copy": [], "volume list, a page of 100": []}
    with Engine(conf) as engine:
        volume = engine.create_volume(host=pools[0], size_bytes=SIZE_BYTES)
        for run in range(2 * runs + 2):
            forced = bool(run % 2)
            here = engine.show_volume(volume.id).host
            began = time.perf_counter()
            engine.migrate(volume.id, pools[here == pools[0]], force_host_copy=forced).result()
            if run >= 2:  # the first of each kind loads what it needs
                measured["host copy" if forced else "driver"].append(time.perf_counter() - began)
        for _ in range(runs):
            began = time.perf_counter()
            engine.list_volumes(VolumeQuery(limit=100))
            measured["volume list, a page of 100"].append(time.perf_counter() - began)
    return {name: statistics.median(times) * 1000 for name, times in measured.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="runs of each measurement (15)")
    parser.add_argument("--directory", type=Path, help="where the databases are made (a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()

    imports = {name: import_seconds(statement, arguments.runs) * 1000 for name, statement in IMPORTS.items()}
    distributions = core_distributions()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        small = overhead(SMALL, arguments.runs, Path(directory, "small"))
        large = overhead(LARGE, arguments.runs, Path(directory, "large"))

    if arguments.json:
        result = {
            "import_ms": imports,
            "distributions": distributions,
            "small_ms": small,
            "large_ms": large,
            "runs": arguments.runs,
        }
        print(json.dumps(result, indent=2))
        return
    print(f"Import, median of {arguments.runs} fresh interpreters")
    for name, value in imports.items():
        print(f"  {name:<36} {value:8.1f} ms")
    print(f"Installed distributions of the core: {len(distributions)} ({', '.join(distributions)})")
    print(f"One migration without data, median of {arguments.runs}, and a page of volumes")
    print(f"  {'':<36} {SMALL.volumes:>8,} {LARGE.volumes:>10,} volumes on record   ratio")
    for name in small:
        print(f"  {name:<36} {small[name]:5.2f} ms {large[name]:7.2f} ms {large[name] / small[name]:25.2f}")


if __name__ == "__main__":
    main()
