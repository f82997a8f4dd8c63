"""The two ends of a copy, opened: one face for paths, handles, exports and images."""
