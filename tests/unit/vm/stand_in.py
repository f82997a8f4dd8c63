"""A stand-in for virtme-run and the machine it starts: the agent's side of the conversation, on the host, without QEMU.

It runs commands as the real agent does; a command ``machine VERB`` makes it misbehave: ``panic``, ``off``, ``vanish``.
How it boots is said by the environment variable ``STAND_IN``: ``never``, ``dies``, ``broken``, or nothing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Be the machine."""
    (exchange,) = [Path(word.split("=")[2]) for word in sys.argv if word.startswith("--rwdir=")]
    (token,) = set(re.findall(r"'\\0%s:%s:%s\\0' (\w+)", (exchange / "guest" / "agent.sh").read_text()))

    def mark(name: str, value: object) -> None:
        os.write(1, f"\0{token}:{name}:{value}\0".encode())

    behaviour = os.environ.get("STAND_IN", "")
    os.write(2, b"[    0.000000] Linux version\n")
    if behaviour == "never":
        signal.pause()
    if behaviour == "dies":
        os.write(2, b"[    0.000001] Unable to mount root\n")
        return
    mark(*(("failed", "load the kernel modules x") if behaviour == "broken" else ("ready", "6.1")))
    for line in sys.stdin:
        verb, number = line.split()
        if verb == "show":
            (exchange / "results" / "processes.log").write_text("what was running")
            mark("shown", number)
            continue
        script = (exchange / "commands" / f"{number}.sh").read_text()
        asked = re.search(r"machine (\w+)$", script.strip())
        if asked:
            os.write(1, b"last words")
            if asked.group(1) == "panic":
                os.write(2, b"[   10.0] Kernel panic - not syncing: sysrq triggered crash\n")
            elif asked.group(1) == "off":
                os.write(2, b"[   10.0] reboot: Power down\n")
            elif asked.group(1) == "hang":
                continue
            return
        done = subprocess.run(
            ["bash", str(exchange / "commands" / f"{number}.sh")], stdin=subprocess.DEVNULL, check=False
        )
        mark(f"end-{number}", done.returncode)
    (exchange / "results" / "stopped").write_text("in order")
    time.sleep(0.05)


if __name__ == "__main__":
    main()
