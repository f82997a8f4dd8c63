"""The same migrations and copies again and again, each with another failure: too many for the unit tests."""
