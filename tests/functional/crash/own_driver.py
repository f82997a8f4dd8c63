"""A sweep as the author of a driver sets it up; the configuration's file is named by the environment."""

from __future__ import annotations

import os

from volmig.testing.killsweep import ConfiguredBench, standard_scenarios

BENCH = ConfiguredBench(os.environ.get("SWEPT_CONF", ""), source="here@files#one", destination="here@files#two")
SCENARIOS = standard_scenarios(BENCH)
