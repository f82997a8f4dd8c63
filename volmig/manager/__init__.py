"""Backends and the life of volumes on them."""
