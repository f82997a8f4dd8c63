"""Going on where an earlier run of a copy stopped."""
