"""What can go wrong with the test bed itself, as opposed to what runs in it.

These are no errors of volmig: no program that moves volumes raises them, so they are not in its catalogue.
"""

from __future__ import annotations


class BedError(Exception):
    """Base of all errors of the test bed; its text says what happened and what to do."""

    def __init__(self, message: str, *, hint: str = "", evidence: str = "") -> None:
        self.message = message
        self.hint = hint
        self.evidence = evidence
        shown = [message, hint, f"The last of what it said:\n{evidence}" if evidence else ""]
        super().__init__("\n".join(part for part in shown if part))


class BedIncomplete(BedError):
    """A program, package or kernel that the bed needs is missing."""


class BootFailed(BedError):
    """The machine did not become ready for commands."""


class MachineEnded(BedError):
    """The machine went away while a command ran in it; the command has no exit status."""


class MachinePanicked(MachineEnded):
    """The kernel of the machine panicked while a command ran."""


class MachinePoweredOff(MachineEnded):
    """The machine was switched off while a command ran, from within or by its owner."""


class CommandTimedOut(BedError):
    """A command did not end in its time; the machine was switched off."""
