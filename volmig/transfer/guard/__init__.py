"""What stands against overwriting a path: who uses it, and what is on it."""
