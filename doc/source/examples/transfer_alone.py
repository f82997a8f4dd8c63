"""Copy one file or block device to another, and prove it: ``python transfer_alone.py SOURCE DESTINATION``."""

from __future__ import annotations

import signal
import sys

from volmig import errors
from volmig.transfer import Control, CopyOptions, TransferProgress, Verify, copy, digest_of


def show(progress: TransferProgress) -> None:
    print(f"{progress.stage} {progress.bytes_done} of {progress.bytes_total}", file=sys.stderr)


def main(source: str, destination: str) -> int:
    control = Control()
    signal.signal(signal.SIGINT, lambda *_: control.cancel())
    with open(source, "rb") as end:
        size_bytes = end.seek(0, 2)
    try:
        result = copy(
            source,
            destination,  # must exist, with room for size_bytes; nothing is created or truncated
            size_bytes=size_bytes,
            options=CopyOptions(verify=Verify.DIGEST, bandwidth_limit_bytes=200 * 1024**2),
            progress=show,
            control=control,
        )
    except errors.VolmigError as error:
        print(error.message, error.hint, file=sys.stderr)
        return 1
    print(f"{result.engine}: {result.bytes_copied} bytes of data, {result.bytes_zero} of zeroes")
    print(result.digest_algorithm, result.destination_digest)
    return 0 if digest_of(destination, size_bytes=size_bytes) == result.source_digest else 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
