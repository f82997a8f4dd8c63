"""Connectors open a volume on this host."""

from volmig.connectors.base import INTERFACE_VERSION, Connector

__all__ = ["INTERFACE_VERSION", "Connector"]
