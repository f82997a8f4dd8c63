"""Which tests run in the machine, and which on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import vm_tier


def test_the_tier_runs_tests_where_they_belong():
    results = Path("/results")
    both = vm_tier.commands(results, [])
    assert [command[-1] for command in both] == ["tests/vm", "tests/power"]
    (inside,) = vm_tier.commands(results, ["tests/vm/test_x.py", "-k", "y"])
    assert inside[-3:] == ["tests/vm/test_x.py", "-k", "y"]
    assert "volmig.testing.vm" in inside
    (outside,) = vm_tier.commands(results, ["tests/power/test_z.py"])
    assert "volmig.testing.vm" not in outside
    (all_inside,) = vm_tier.commands(results, ["-k", "y"])
    assert all_inside[-3:] == ["-k", "y", "tests/vm"]
    with pytest.raises(SystemExit, match="not of both"):
        vm_tier.commands(results, ["tests/vm/test_x.py", "tests/power/test_z.py"])
