"""An engine and a simple model of volumes agree after every request, whatever the order, and whoever dies."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.unit.engine.model import EngineMachine

TestModel = EngineMachine.TestCase
TestModel.settings = settings(
    max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
