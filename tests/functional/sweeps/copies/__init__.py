"""Copies, fuzzed and killed."""
