"""The test bed itself: what the tests beside this one rely on is there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import volmig

ROOT = Path(__file__).parents[2]


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_device_mapper_has_all_targets_that_drivers_and_faults_are_tested_with():
    targets = {line.split()[0] for line in _run("dmsetup", "targets").splitlines()}
    assert targets >= {
        "linear",
        "striped",
        "error",
        "mirror",
        "snapshot",
        "thin",
        "thin-pool",
        "flakey",
        "delay",
        "raid",
    }


@pytest.mark.parametrize("module", ["loop", "iscsi_tcp", "nvme_tcp", "nvmet_tcp", "target_core_mod", "nbd"])
def test_modules_of_exports_and_attachments_load(module):
    _run("modprobe", module)
    assert Path("/sys/module", module).is_dir()


def test_the_checkout_is_the_hosts():
    assert Path(volmig.__file__) == ROOT / "volmig" / "__init__.py"
    assert (ROOT / "setup.cfg").is_file()


def test_the_virtual_environment_is_the_hosts_and_first_in_the_path():
    assert os.environ["PATH"].split(":")[0] == f"{sys.prefix}/bin"
    assert Path(sysconfig.get_paths()["purelib"]).is_relative_to(sys.prefix)


def test_nothing_of_the_hosts_environment_leaks_in():
    unexpected = os.environ.keys() - {
        *("PATH", "VIRTUAL_ENV", "HOME", "TMPDIR", "LANG", "TERM", "PWD", "SHLVL", "_", "PYTHONUNBUFFERED"),
        *("LVM_SUPPRESS_FD_WARNINGS", "VOLMIG_VM_RESULTS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"),
    }
    assert not unexpected


def test_a_file_on_the_root_can_be_written_and_is_a_layer_over_the_hosts(request):
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [mount[2] for mount in mounts if mount[1] == "/"] == ["overlay"]
    probe = ROOT / "written-in-the-guest"
    request.addfinalizer(lambda: probe.unlink(missing_ok=True))
    probe.write_text("x")
    assert probe.read_text() == "x"


def test_udev_makes_the_nodes_of_a_loop_device_and_a_volume_group_on_it(tmp_path, request):
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 * 1024**2)
    device = _run("losetup", "--find", "--show", str(image)).strip()
    request.addfinalizer(lambda: _run("losetup", "--detach", device))
    _run("vgcreate", "volmig-bed", device)
    request.addfinalizer(lambda: _run("vgremove", "-ff", "-y", "volmig-bed"))
    _run("lvcreate", "-y", "-L", "8M", "-n", "one", "volmig-bed")
    assert Path("/dev/volmig-bed/one").is_block_device()


def test_results_are_written_to_a_directory_of_the_host():
    results = Path(os.environ["VOLMIG_VM_RESULTS"])
    assert results.parent.is_mount()
    (results / "bed.txt").write_text("seen")
