"""Copying and verifying the bytes of volumes, between any two paths or handles; knows nothing of volumes.

:func:`copy` is the way in, and consists of :func:`copy_data` and :func:`verify_copy`; :func:`check_unchanged`
looks at the source once more; :class:`Control` steers it;
:class:`TransferEngine` is what a plugin implements.
"""

from volmig.transfer.base import (
    INTERFACE_VERSION,
    Checkpoint,
    CopiedData,
    CopyJob,
    CopyOptions,
    CopyStage,
    End,
    EndMark,
    EngineOutcome,
    HelperProcess,
    Tail,
    TransferEngine,
    TransferProgress,
    TransferResult,
    VerifiedData,
    Verify,
)
from volmig.transfer.control import Control, boottime_seconds
from volmig.transfer.copying import copy, copy_data
from volmig.transfer.reading import digest_of
from volmig.transfer.verify import verify_copy
from volmig.transfer.watch import check_unchanged

__all__ = [
    "INTERFACE_VERSION",
    "Checkpoint",
    "Control",
    "CopiedData",
    "CopyJob",
    "CopyOptions",
    "CopyStage",
    "End",
    "EndMark",
    "EngineOutcome",
    "HelperProcess",
    "Tail",
    "TransferEngine",
    "TransferProgress",
    "TransferResult",
    "VerifiedData",
    "Verify",
    "boottime_seconds",
    "check_unchanged",
    "copy",
    "copy_data",
    "digest_of",
    "verify_copy",
]
