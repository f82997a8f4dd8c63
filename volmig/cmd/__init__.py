"""Executables that are not for people: they are started by volmig itself or by a service manager."""
