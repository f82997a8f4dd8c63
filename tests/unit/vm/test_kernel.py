"""The kernel's cache, with stand-ins for apt-cache, apt-get, dpkg and depmod: nothing is downloaded here."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from volmig.testing.vm import BedIncomplete, KernelCache
from volmig.testing.vm.kernel import default_cache

RELEASE = "6.1.0-9-amd64"

# Stand-ins: they leave the files that the real programs leave, and count their calls in the file "calls".
STAND_INS = {
    "apt-cache": """printf 'linux-image-amd64\\n  Depends: linux-image-%s\\n' "$(cat "$here/release")" """,
    "apt-get": """echo download >> "$here/calls"; touch "$3_1_amd64.deb"; echo "$3" > "$here/asked" """,
    "dpkg": """r=$(cat "$here/release"); mkdir -p "$3/boot" "$3/lib/modules/$r"; touch "$3/boot/vmlinuz-$r" """,
    "depmod": """touch "$2/lib/modules/$3/modules.dep" """,
}


@pytest.fixture
def programs(tmp_path):
    directory = tmp_path / "stand-ins"
    directory.mkdir()
    (directory / "release").write_text(RELEASE)
    for name, text in STAND_INS.items():
        _stand_in(directory, name, text)
    return directory


def _stand_in(directory, name, text):
    file = directory / name
    file.write_text(f"#!/bin/bash\nset -e\nhere={directory}\n{text}\n")
    file.chmod(0o755)


def _cache(tmp_path, programs):
    return KernelCache(tmp_path / "cache", programs=[str(programs)])


def _downloads(programs):
    calls = programs / "calls"
    return calls.read_text().count("download") if calls.exists() else 0


def test_the_kernel_that_debian_names_is_downloaded_once(tmp_path, programs):
    first = _cache(tmp_path, programs).kernel()
    assert first.image.name == f"vmlinuz-{RELEASE}"
    assert first.modules.name == RELEASE
    assert _cache(tmp_path, programs).kernel() == first
    assert _downloads(programs) == 1
    assert (programs / "asked").read_text().strip() == f"linux-image-{RELEASE}"


def test_a_newer_one_is_downloaded_beside_it(tmp_path, programs):
    _cache(tmp_path, programs).kernel()
    (programs / "release").write_text("6.1.0-10-amd64")
    assert _cache(tmp_path, programs).kernel().modules.name == "6.1.0-10-amd64"
    assert _downloads(programs) == 2


def test_two_at_once_share_one_download(tmp_path, programs):
    _stand_in(programs, "apt-get", STAND_INS["apt-get"] + "; sleep 0.3")
    found = []
    threads = [threading.Thread(target=lambda: found.append(_cache(tmp_path, programs).kernel())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert _downloads(programs) == 1


@pytest.mark.parametrize("program", ["apt-get", "dpkg", "depmod"])
def test_what_fails_on_the_way_is_told_and_leaves_nothing_that_looks_whole(tmp_path, programs, program):
    _stand_in(programs, program, "echo the reason >&2; exit 7")
    with pytest.raises(BedIncomplete, match="status 7") as caught:
        _cache(tmp_path, programs).kernel()
    assert "the reason" in caught.value.evidence
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["lock"]
    _stand_in(programs, program, STAND_INS[program])
    assert _cache(tmp_path, programs).kernel().image.is_file()


def test_without_package_lists_the_newest_that_was_kept_is_taken(tmp_path, programs):
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64"):
        (programs / "release").write_text(release)
        _cache(tmp_path, programs).kernel()
    _stand_in(programs, "apt-cache", "exit 100")
    assert _cache(tmp_path, programs).kernel().modules.name == "6.1.0-10-amd64"


def test_without_package_lists_and_without_a_kernel_the_error_says_what_to_do(tmp_path, programs):
    _stand_in(programs, "apt-cache", "exit 100")
    with pytest.raises(BedIncomplete, match="apt-get update"):
        _cache(tmp_path, programs).kernel()


def test_a_kernel_that_lost_a_part_is_told_and_not_booted(tmp_path, programs):
    _cache(tmp_path, programs).kernel().image.unlink()
    with pytest.raises(BedIncomplete, match=r"not whole(.|\n)*rm -r"):
        _cache(tmp_path, programs).kernel()


def test_the_cache_is_outside_of_any_checkout(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert default_cache() == Path("/some/cache/volmig/vm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/volmig/vm")
