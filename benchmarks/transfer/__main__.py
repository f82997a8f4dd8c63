"""Copy volumes of several shapes with volmig and with the programs people use, and say who was how fast.

    python -m benchmarks.transfer --directory DIR                # the whole: files, and as root loop devices
    python -m benchmarks.transfer --quick                        # a few minutes; says little about speed
    python -m benchmarks.transfer --json OUT.json --plot OUT.png --rst OUT.inc
    python -m benchmarks.transfer --load OUT.json --rst OUT.inc  # told again, without measuring

Nothing of it is left behind, neither after Ctrl-C. It empties the machine's page cache before each run when it is root.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.transfer import ends, limit, machine, peers, plot, report, shapes
from benchmarks.transfer.measure import Bench
from benchmarks.transfer.peers import Entrant
from benchmarks.transfer.results import Entry, Results, tables
from benchmarks.transfer.shapes import MIB, SHAPES, Shape, SourceWrong
from benchmarks.transfer.stop import Stop, Stopped
from volmig import errors
from volmig.cli.sizes import parse_size

QUICK_BYTES = 128 * MIB
QUICK_REPEATS = 1
FULL = "4GiB"
FULL_REPEATS = 5
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_SPARE_BYTES = 512 * MIB


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write what was asked for; return the exit status: 1 when a copy failed or was wrong."""
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        if arguments.plot:
            plot.require()
        if arguments.load:
            results = Results.from_json(arguments.load.read_text(encoding="utf-8"))
        else:
            with Stop().listening() as stop:
                results = _measure(parser, arguments, stop)
    except plot.PlotImpossible as exc:
        parser.error(str(exc))
    except Stopped as exc:
        print(f"stopped by {exc}; everything is removed", file=sys.stderr)
        return 130
    except (SourceWrong, ends.EndsUnusable, OSError) as exc:
        print(f"cannot measure: {exc}", file=sys.stderr)
        return 2
    sys.stdout.write(report.text(results))
    if arguments.json:
        arguments.json.write_text(results.to_json() + "\n", encoding="utf-8")
    if arguments.plot:
        plot.draw(results, tables(results, peers.DD), arguments.plot)
    if arguments.rst:
        page = report.rst(results, picture=report.relative(arguments.plot, arguments.rst))
        arguments.rst.write_text(page, encoding="utf-8")
    return 1 if results.failures() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", help=f"size of a volume ({FULL}); the almost empty one has {shapes.EMPTY_FACTOR} times it"
    )
    parser.add_argument("--repeats", type=int, help=f"runs of each ({FULL_REPEATS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BYTES // MIB} MiB, once, unless told otherwise")
    _add_choice(parser, "--shapes", [shape.name for shape in SHAPES])
    _add_choice(parser, "--peers", list(peers.NAMES))
    _add_choice(parser, "--ends", list(ends.KINDS))
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")  # noqa: S108
    parser.add_argument("--check-all", action="store_true", help="check the content after each run, not only the first")
    parser.add_argument("--no-limit", action="store_true", help="do not measure the disk itself")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one copy may take (1800)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG)")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the tables for the documentation")
    parser.add_argument("--load", type=Path, metavar="FILE", help="take the figures from there; measure nothing")
    return parser


def _add_choice(parser: argparse.ArgumentParser, option: str, names: list[str]) -> None:
    def chosen(text: str) -> list[str]:
        asked = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in asked if name not in names]
        if unknown or not asked:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: not of {', '.join(names)}")
        return [name for name in names if name in asked]

    parser.add_argument(option, type=chosen, metavar="NAME,NAME", help=f"only these of {', '.join(names)}")


def _measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace, stop: Stop) -> Results:
    size_bytes, repeats = _sizes(parser, arguments)
    chosen = [shape for shape in SHAPES if arguments.shapes is None or shape.name in arguments.shapes]
    directory: Path = arguments.directory.resolve()
    if not directory.is_dir():
        parser.error(f"{directory} is no directory")
    if machine.file_system_of(directory) in machine.MEMORY_FILE_SYSTEMS:
        parser.error(f"{directory} is in memory; choose a directory on the disk that is to be measured")
    _check_room(parser, directory, chosen, size_bytes)
    results = Results(
        facts=machine.facts(directory),
        settings={
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "size_bytes": size_bytes,
            "repeats": repeats,
        },
        entrants={entrant.name: Entry(title=entrant.title, is_ours=entrant.is_ours) for entrant in peers.ENTRANTS},
        kinds={},
    )
    with tempfile.TemporaryDirectory(prefix="volmig-bench-", dir=directory) as name:
        place = Path(name)
        kinds = _field(parser, arguments, results, place)
        for reason in results.left_out:
            _say(f"left out: {reason}")
        _measure_limit(results, arguments, "before", place, size_bytes, stop)
        with Bench(
            place,
            results,
            check=stop.check,
            say=_say,
            timeout_seconds=arguments.timeout,
            clones=_can_clone(place),
        ) as bench:
            for shape in chosen:
                bench.run(shape, size_bytes, kinds, repeats, check_all=arguments.check_all)
        _measure_limit(results, arguments, "after", place, size_bytes, stop)
    return results


def _sizes(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[int, int]:
    """Return the usual size of a volume, and the number of runs."""
    size_bytes = QUICK_BYTES if arguments.quick else parse_size(FULL)
    repeats: int = QUICK_REPEATS if arguments.quick else FULL_REPEATS
    if arguments.size is not None:
        try:
            size_bytes = parse_size(arguments.size)
        except errors.SizeInvalid as exc:
            parser.error(str(exc))
    if size_bytes < shapes.MIN_BYTES or size_bytes % shapes.STEP_BYTES:
        parser.error(
            f"--size must be a multiple of {shapes.STEP_BYTES // MIB} MiB, and {shapes.MIN_BYTES // MIB} MiB or more"
        )
    if arguments.repeats is not None:
        repeats = arguments.repeats
    if repeats < 1:
        parser.error("--repeats must be 1 or more")
    return size_bytes, repeats


def _check_room(parser: argparse.ArgumentParser, directory: Path, chosen: Sequence[Shape], size_bytes: int) -> None:
    """Refuse when the largest source, its copy with all holes filled, and some spare room do not fit."""
    free = shutil.disk_usage(directory).free
    needed = 2 * size_bytes
    if needed <= free:  # else the plans of the sources need not be made, which takes memory of its own
        needed = max(needed, *(shape.written_bytes(size_bytes) + shape.size_bytes(size_bytes) for shape in chosen))
    needed = needed * 21 // 20 + _SPARE_BYTES
    if free < needed:
        parser.error(
            f"{directory} has {free // MIB} MiB free, and {needed // MIB} MiB are needed; choose a smaller --size"
        )


def _field(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, results: Results, directory: Path
) -> dict[str, list[Entrant]]:
    """Return who runs on which kind of ends, and note who does not, and why."""
    asked = [entrant for entrant in peers.ENTRANTS if arguments.peers is None or entrant.name in arguments.peers]
    has_command = _has_command()
    able = []
    for entrant in asked:
        reason = peers.unavailable(entrant, has_command=has_command)
        if reason:
            results.left_out.append(f"{entrant.title}: {reason}")
        else:
            able.append(entrant)
    found = {}
    for kind in arguments.ends or ends.KINDS:
        reason = ends.unusable(kind, directory)
        if reason and arguments.ends:
            parser.error(f"--ends {kind}: {reason}")
        if reason:
            results.left_out.append(f"{ends.TITLES[kind]}: {reason}")
            continue
        found[kind] = [entrant for entrant in able if kind not in entrant.left_out]
        results.kinds[kind] = ends.TITLES[kind]
        results.left_out += [
            f"{entrant.title}, {ends.TITLES[kind]}: {entrant.left_out[kind]}"
            for entrant in able
            if kind in entrant.left_out
        ]
    return found


def _has_command() -> bool:
    command = [sys.executable, "-m", "volmig.cli", "copy", "--help"]
    return (
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60).returncode == 0
    )


def _can_clone(directory: Path) -> bool:
    """Return whether files here can share blocks, in which case cp would copy nothing."""
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as destination:
        source.write(bytes(64 * 1024))
        source.flush()
        os.fsync(source.fileno())
        try:
            fcntl.ioctl(destination.fileno(), _FICLONE, source.fileno())
        except OSError:
            return False
    return True


def _measure_limit(
    results: Results, arguments: argparse.Namespace, when: str, directory: Path, size_bytes: int, stop: Stop
) -> None:
    if arguments.no_limit:
        return
    _say(f"the disk itself, {when}")
    try:
        results.limits.append(limit.measure_limit(when, directory, size_bytes, stop.check))
    except limit.LimitUnknown as exc:
        results.left_out.append(str(exc))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
