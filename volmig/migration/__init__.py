"""Migrations: accepting them, owning them, and running their steps."""
