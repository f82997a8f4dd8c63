"""Tests that a migration is only ever run by one worker, with real processes that are killed and suspended."""
