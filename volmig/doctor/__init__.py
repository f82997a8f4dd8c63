"""Comparing what is recorded with what is there: store, backends, processes and leases."""

from volmig.doctor.exam import GRACE_SECONDS, examine
from volmig.doctor.findings import Code, Finding, Mended, Report, Severity
from volmig.doctor.mending import mend

__all__ = ["GRACE_SECONDS", "Code", "Finding", "Mended", "Report", "Severity", "examine", "mend"]
