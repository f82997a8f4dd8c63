"""Sweep from the command line: ``python -m volmig.testing.killsweep``."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from volmig.testing.killsweep.scenario import Scenario
from volmig.testing.killsweep.sweep import Failure, Sweep
from volmig.testing.killsweep.zygote import Zygote, load_scenarios

DEFAULT = "volmig.testing.killsweep.cases:SCENARIOS"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return 1 when something was wrong after a kill."""
    arguments = _parser().parse_args(argv)
    known = load_scenarios(arguments.scenarios)
    unknown = [name for name in arguments.scenario if name not in known]
    if unknown:
        sys.stderr.write(f"there is no scenario {', '.join(unknown)}; there are: {', '.join(known)}\n")
        return 2
    with contextlib.ExitStack() as stack:
        directory = Path(arguments.directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="killsweep-")))
        zygotes = [stack.enter_context(Zygote(arguments.scenarios)) for _ in range(arguments.processes)]
        sweep = Sweep(zygotes, directory, seed=arguments.seed, long=arguments.long)
        failed = False
        for scenario in [known[name] for name in arguments.scenario or known]:
            failures = _at(sweep, scenario, arguments.point) if arguments.point else _everywhere(sweep, scenario)
            for failure in failures:
                failed = True
                _tell(failure, arguments.scenarios)
    return int(failed)


def _everywhere(sweep: Sweep, scenario: Scenario) -> Sequence[Failure]:
    began = time.monotonic()
    report = sweep.run(scenario)
    sys.stdout.write(f"{report}; {time.monotonic() - began:.1f} s, seed {sweep.seed}\n")
    sys.stdout.writelines(f"  missed: {kill}\n" for kill in report.missed)
    sys.stdout.flush()
    return report.failures


def _at(sweep: Sweep, scenario: Scenario, points: Sequence[str]) -> Sequence[Failure]:
    outcome = sweep.do(scenario, points, keep=True)
    missed = f"; not reached: {outcome.missed}" if outcome.missed else ""
    sys.stdout.write(f"{scenario.name}: {len(outcome.problems)} problems{missed}\n")
    return [Failure(scenario=scenario.name, kills=points, problems=outcome.problems)] if outcome.problems else []


def _tell(failure: Failure, scenarios: str) -> None:
    sys.stdout.write(f"\nagain: {failure.command(scenarios)}\n")
    sys.stdout.writelines(f"  {problem}\n" for problem in failure.problems)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m volmig.testing.killsweep", description=__doc__)
    parser.add_argument(
        "--scenarios", default=DEFAULT, metavar="MODULE:ATTRIBUTE", help="where the scenarios are; default: %(default)s"
    )
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="NAME#NUMBER[+SECONDS]",
        help="only this run: killed here; given again, the recovery is killed there, and so on",
    )
    parser.add_argument("--long", action="store_true", help="every pair of points, and many more instants")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), metavar="NUMBER")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="NUMBER", help="runs at once")
    parser.add_argument(
        "--directory",
        metavar="PATH",
        help="where to run; with --point a copy of the run's directory is left there, for a look",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
