"""Transfer engines, the choice between them, and the programs that some of them run."""
