"""A migration that is killed everywhere, and must be whole everywhere: the sweep that drivers and volmig itself pass.

A :class:`Scenario` is some work on a :class:`Bench`, two pools of real storage. Its first run counts the points that it
passes: each commit of the store, before and after; each call of a driver, before and after; each system call within.
Then, for each point, a process does the same work and kills itself exactly there, another process recovers, and
:mod:`volmig.testing.killsweep.invariants` looks at what became of the volume. After that the recovery is killed as
well, at a point of its own.

Run it with ``python -m volmig.testing.killsweep``. For a driver of one's own, write a module::

    from volmig.testing.killsweep import ConfiguredBench, standard_scenarios

    BENCH = ConfiguredBench("volmig.conf", source="host@backend#one", destination="host@backend#two")
    SCENARIOS = standard_scenarios(BENCH)

and give it with ``--scenarios module:SCENARIOS``.
"""

from volmig.testing.killsweep.bench import Bench, FileBench
from volmig.testing.killsweep.configured import ConfiguredBench, standard_scenarios
from volmig.testing.killsweep.marks import Kill, Marks
from volmig.testing.killsweep.scenario import Run, Scenario, Stage, finish, migrate_plainly
from volmig.testing.killsweep.sweep import Failure, Report, Sweep
from volmig.testing.killsweep.zygote import Job, Outcome, Zygote, load_scenarios

__all__ = [
    "Bench",
    "ConfiguredBench",
    "Failure",
    "FileBench",
    "Job",
    "Kill",
    "Marks",
    "Outcome",
    "Report",
    "Run",
    "Scenario",
    "Stage",
    "Sweep",
    "Zygote",
    "finish",
    "load_scenarios",
    "migrate_plainly",
    "standard_scenarios",
]
