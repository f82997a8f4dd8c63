"""The sample configuration is what oslo-config-generator makes of the options, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from volmig.conf import backend
from volmig.conf.opts import GROUPS

from .places import GENERATOR, SAMPLE

_RENEW = "`oslo-config-generator --config-file etc/volmig/config-generator.conf` writes it anew"


def test_sample_is_current(tmp_path):
    made = tmp_path / "sample"
    # Another home, since nothing of the machine or the user may show.
    environment = os.environ | {"HOME": str(tmp_path / "home"), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = "import socket; socket.gethostname = lambda: 'other'; from oslo_config import generator as g; g.main()"
    subprocess.run(
        [sys.executable, "-c", command, "--config-file", str(GENERATOR), "--output-file", str(made)],
        env=environment,
        check=True,
        timeout=60,
    )
    assert SAMPLE.read_text() == made.read_text(), _RENEW


def test_sample_has_every_option():
    lines = SAMPLE.read_text().splitlines()
    for option in (*backend.OPTIONS, *(option for module in GROUPS for option in module.OPTIONS)):
        assert [line for line in lines if line.startswith(f"#{option.name} =")], option.name


def test_sample_names_nothing_of_the_machine():
    text = SAMPLE.read_text()
    assert str(Path.home()) not in text.replace("~", "")
    assert "#host = <this machine's host name>" in text
