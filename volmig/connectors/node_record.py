"""The one thing about a session that iscsiadm would only take on its command line: the CHAP secret.

Command lines can be read by every user of a host. So the secret is put into the record of the node where iscsiadm would
put it; run as a program, ``python -I -m volmig.connectors.node_record`` does so as root, and has it from its standard
input.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DIRECTORIES = (Path("/etc/iscsi/nodes"), Path("/var/lib/iscsi/nodes"))
"""Where open-iscsi keeps its records: Debian's place, and that of newer versions."""

_KEY = "node.session.auth.password"
_IQN = re.compile(r"(iqn|eui|naa)\.[A-Za-z0-9][A-Za-z0-9.:_-]{0,218}")


def records(target_iqn: str, *, directories: tuple[Path, ...] = DIRECTORIES) -> Iterator[Path]:
    """Yield the files of the records of a target. :raises ValueError: when the name is none."""
    if not _IQN.fullmatch(target_iqn):
        raise ValueError(f"{target_iqn!r} is no qualified name")
    for directory in directories:
        node = directory / target_iqn
        yield from (path for path in sorted(node.rglob("*")) if path.is_file() and not path.name.startswith("."))


def put_secret(target_iqn: str, portal: str, secret: str, *, directories: tuple[Path, ...] = DIRECTORIES) -> int:
    """Put the secret into the records of a target at a portal; return how many there are.

    :param portal: address and port, as ``192.0.2.1:3260``.
    :raises ValueError: when the secret or the name cannot be in a record.
    """
    if not re.fullmatch(r"\S{1,255}", secret):
        raise ValueError("the secret has characters that a record cannot hold")
    address, _, port = portal.rpartition(":")
    # The portal group follows, where it is known.
    begins = f"{address.strip('[]')},{port}"
    count = 0
    for path in records(target_iqn, directories=directories):
        if any(f"{part},".startswith(f"{begins},") for part in path.parts[-2:]):
            _replace(path, secret)
            count += 1
    return count


def _replace(path: Path, secret: str) -> None:
    lines = [line for line in path.read_text().splitlines() if line.partition("=")[0].strip() != _KEY]
    end = next((number for number, line in enumerate(lines) if line.startswith("# END RECORD")), len(lines))
    lines.insert(end, f"{_KEY} = {secret}")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write("\n".join(lines) + "\n")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def main() -> int:
    """Put the secret that the standard input tells of where it belongs."""
    request = json.load(sys.stdin)
    if put_secret(str(request["iqn"]), str(request["portal"]), str(request["secret"])):
        return 0
    sys.stderr.write(f"there is no record of {request['iqn']} at {request['portal']}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
