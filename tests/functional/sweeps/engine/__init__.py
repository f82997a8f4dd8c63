"""An engine, and many who want something of it at once."""
