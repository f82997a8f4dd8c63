"""Programs with the behaviour of qemu-img and nbdcopy as far as the engines use it, for machines without them."""

from __future__ import annotations

import sys
from pathlib import Path

_COMMON = """
import json, os, re, sys, time

mode = os.environ.get("VOLMIG_TEST_MODE", "")
with open(os.environ["VOLMIG_TEST_LOG"], "a") as log:
    log.write(json.dumps(sys.argv) + "\\n")

def copy(source, target, size, told):
    done = 0
    while done < size:
        data = os.pread(source, min(1 << 16, size - done), done)
        data += bytes(min(1 << 16, size - done) - len(data))
        if mode == "full" and done >= size // 2:
            told.error(done)
        os.pwrite(target, data, done)
        done += len(data)
        told.percent(100 * done / size)
        if mode == "slow":
            time.sleep(0.01)
        while mode == "half" and done >= size // 2 and not os.path.exists(os.environ["VOLMIG_TEST_LOG"] + ".go"):
            time.sleep(0.01)
    if mode == "deaf":
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
"""

QEMU_IMG = (
    _COMMON
    + """
class Told:
    def percent(self, value):
        sys.stdout.write("    (%.2f/100%%)\\r" % value)
        sys.stdout.flush()

    def error(self, at):
        sys.exit(f"qemu-img: error while writing at byte {at}: No space left on device")

if mode == "broken":
    sys.exit(f"qemu-img: Could not open '{sys.argv[-2]}': Permission denied")
if sys.argv[1] == "create":
    name, path, size = sys.argv[-3:]
    with open(path, "r+b") as image:
        image.truncate(0)
        image.write(b"FAKE")
        image.truncate(int(size))
else:
    assert sys.argv[1] == "convert"
    node = json.loads(sys.argv[-2].removeprefix("json:"))
    target = dict(part.split("=", 1) for part in sys.argv[-1].split(","))
    while "filename" not in node["file"]:
        size = node["size"]
        node = node["file"]
    size = node.get("size") or int(target.get("size", 0)) or size
    source = os.open(node["file"]["filename"], os.O_RDONLY)
    copy(source, os.open(target["file.filename"], os.O_RDWR), size, Told())
"""
)

NBDCOPY = (
    _COMMON
    + """
class Told:
    def percent(self, value):
        print("%d/100" % value, flush=True)

    def error(self, at):
        sys.exit("nbdcopy: write: No space left on device")

if mode == "broken":
    sys.exit(f"nbdcopy: {sys.argv[-2]}: server is gone")
source = os.open(sys.argv[-2], os.O_RDONLY)
target = os.open(sys.argv[-1], os.O_WRONLY | os.O_TRUNC)
copy(source, target, os.fstat(source).st_size, Told())
"""
)

QEMU_NBD = """
import json, os, sys, time
sys.path.insert(0, os.environ["VOLMIG_TEST_ROOT"])
from pathlib import Path
from tests.unit.transfer.nbd_server import NbdServer

mode = os.environ.get("VOLMIG_TEST_MODE", "")
node = json.loads(sys.argv[-1].removeprefix("json:"))
if mode == "broken":
    sys.exit(f"qemu-nbd: Failed to blk_new_open '{node['file']['filename']}': Image is corrupt")
if mode == "mute":
    time.sleep(60)
assert "--read-only" in sys.argv
(path,) = [Path(item.partition("=")[2]) for item in sys.argv if item.startswith("--socket=")]
assert path.parent.stat().st_mode & 0o777 == 0o700
content = Path(node["file"]["filename"]).read_bytes()
with NbdServer(content, directory=path.parent, flags=1 | 2 | 256) as server:
    while not server.connections or server.farewells < server.connections:
        time.sleep(0.01)
"""


def install(directory: Path, **programs: str) -> None:
    """Make a directory with programs; an underscore in a name stands for a hyphen."""
    directory.mkdir(exist_ok=True)
    for name, text in programs.items():
        path = directory / name.replace("_", "-")
        path.write_text(f"#!{sys.executable} -IS\n{text}")
        path.chmod(0o755)
