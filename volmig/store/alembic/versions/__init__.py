"""One script for each schema; see ``volmig.store.schema.REVISIONS``."""
