"""The command line that starts a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from volmig.testing.vm import BedIncomplete, Kernel, MachineOptions
from volmig.testing.vm.launch import launch_command

KERNEL = Kernel(image=Path("/cache/boot/vmlinuz-6"), modules=Path("/cache/lib/modules/6"))


def _made(**options):
    return launch_command(
        ["virtme-run"], kernel=KERNEL, exchange=Path("/some/exchange"), options=MachineOptions(**options)
    )


def test_emulation_is_asked_for_and_never_kvm_by_chance():
    made = _made()
    assert "--disable-kvm" in made
    assert made[made.index("-accel") + 1].startswith("tcg")


def test_programs_are_loaded_where_they_were_translated():
    made = _made()
    assert made[made.index("norandmaps") - 1] == "-a"


def test_kvm_when_asked_for():
    made = _made(accelerator="kvm")
    assert "--disable-kvm" not in made
    # virtme-run asks for it by "-machine accel=", beside which QEMU refuses "-accel".
    assert "-accel" not in made
    assert made[made.index("-cpu") + 1] == "host"


def test_size_is_passed_on():
    made = _made(memory="3G", cpus=4)
    assert made[made.index("--memory") + 1] == "3G"
    assert made[made.index("--cpus") + 1] == "4"


def test_disks_are_raw_in_order_and_their_names_cannot_add_options(tmp_path):
    disks = (tmp_path / "one", tmp_path / "two,readonly=on")
    for disk in disks:
        disk.touch()
    drives = [word for word in _made(disks=disks) if word.startswith("if=none")]
    assert [drive.split(",")[1] for drive in drives] == ["id=volmig-0", "id=volmig-1"]
    assert all("format=raw" in drive.split(",") for drive in drives)
    assert drives[1].endswith("/two,,readonly=on")


def test_the_hosts_root_is_read_only():
    (export,) = [word for word in _made() if word.startswith("local,id=volmig")]
    assert "readonly=on" in export.split(",")


def test_a_disk_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BedIncomplete, match=r"does not exist(.|\n)*truncate"):
        _made(disks=(tmp_path / "none",))


@pytest.mark.parametrize("name", ["a b", "a,b", "a=b;c", "ä", "a`b"])
def test_a_path_that_the_kernels_command_line_cannot_carry_is_told(name):
    with pytest.raises(BedIncomplete, match="characters"):
        launch_command(["virtme-run"], kernel=KERNEL, exchange=Path("/some", name), options=MachineOptions())


def test_an_accelerator_that_does_not_exist_is_told():
    with pytest.raises(BedIncomplete, match="accelerator"):
        _made(accelerator="warp")
