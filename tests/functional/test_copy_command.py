"""``volmig copy`` as a process: on files anywhere, and on block devices of its own, for which it must be root."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cli_support import MIB, REPOSITORY, Cli, environment, pattern, read_terminal, terminal, until
from .storage import mounted, thawed

SIZE = 8 * MIB + 4096 + 512
LARGE = 384 * MIB
CHUNK = 16 * MIB


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Return a command line whose configuration file does not exist, since none is needed."""
    return Cli(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(pattern(SIZE // 2) + bytes(SIZE - SIZE // 2))
    return file


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Return a source that takes a while, without holes or repetition."""
    file = tmp_path / "large"
    with file.open("wb") as written:
        for seed in range(LARGE // CHUNK):
            written.write(pattern(CHUNK, seed=seed))
    return file


def same(one: Path, other: Path, size_bytes: int | None = None) -> bool:
    """Compare with a program that has no part in this."""
    limit = [] if size_bytes is None else [f"--bytes={size_bytes}"]
    return subprocess.run(["cmp", "--silent", *limit, str(one), str(other)]).returncode == 0


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, env=environment(LC_ALL="C"))
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


class TestFiles:
    def test_a_new_file(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        shown = cli.json("copy", str(source), str(tmp_path / "new"))
        assert (shown["bytes_total"], shown["verify"]) == (SIZE, "digest")
        assert shown["source_digest"] == shown["destination_digest"] != ""
        assert shown["bytes_copied"] + shown["bytes_zero"] == SIZE
        assert same(source, tmp_path / "new")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("words", [("--verify", "none"), ("--verify", "compare"), ("--engine", "dd")])
    def test_ways_to_copy(self, cli: Cli, source: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
        cli("copy", *words, str(source), str(tmp_path / "new"))
        assert same(source, tmp_path / "new")

    @pytest.mark.parametrize(("tail", "left"), [("keep", b"\xff"), ("zero", b"\0")])
    def test_the_tail_of_a_larger_file(self, cli: Cli, source: Path, tmp_path: Path, tail: str, left: bytes) -> None:
        present = tmp_path / "present"
        present.write_bytes(b"\xff" * (SIZE + MIB))
        assert "[destination-occupied]" in cli("copy", str(source), str(present), check=2).stderr
        assert present.read_bytes() == b"\xff" * (SIZE + MIB)
        cli("copy", "--force", "--tail", tail, str(source), str(present))
        assert present.read_bytes() == source.read_bytes() + left * MIB

    def test_a_part(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        shown = cli.json("copy", "--size", "1MiB", str(source), str(tmp_path / "new"))
        assert shown["bytes_total"] == MIB
        assert (tmp_path / "new").read_bytes() == source.read_bytes()[:MIB]
        done = cli("copy", "--size", "1GiB", str(source), str(tmp_path / "x"), check=2)
        assert f"{source} has {SIZE} bytes" in done.stderr
        assert not (tmp_path / "x").exists()

    def test_a_directory_of_a_reader_s_own_is_not_needed(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        (tmp_path / "with space").mkdir()
        cli("copy", str(source), str(tmp_path / "with space" / "-x"))
        assert same(source, tmp_path / "with space" / "-x")

    def test_an_image_that_a_raw_source_only_looks_like(self, cli: Cli, tmp_path: Path) -> None:
        forged = tmp_path / "forged"
        forged.write_bytes(b"QFI\xfb\x00\x00\x00\x03" + bytes(MIB - 8))
        assert "[unsupported-format]" in cli("copy", str(forged), str(tmp_path / "new"), check=2).stderr
        assert not (tmp_path / "new").exists()
        cli("copy", "--ignore-header", str(forged), str(tmp_path / "new"))
        assert same(forged, tmp_path / "new")

    def test_to_an_image_and_back(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        image, back = tmp_path / "image.qcow2", tmp_path / "back"
        there = cli.json("copy", "--destination-format", "qcow2", str(source), str(image))
        assert there["engine"] == "qemu-img"
        assert there["source_digest"] == there["destination_digest"]
        assert json.loads(run("qemu-img", "info", "--output=json", str(image)))["virtual-size"] == SIZE
        cli("copy", "--source-format", "qcow2", str(image), str(back))
        assert same(source, back)


def test_the_examples_of_its_page(cli: Cli, source: Path) -> None:
    page = (REPOSITORY / "doc" / "source" / "copy.rst").read_text(encoding="utf-8")
    lines = re.findall(r"^    volmig (copy .*disk\.img .*)$", page, re.MULTILINE)
    source.rename(cli.directory / "disk.img")
    os.truncate(cli.directory / "disk.img", 64 * MIB)
    ran = [line for line in lines if not re.search(r"/dev/|nbds?://", line)]
    for line in ran:
        subprocess.run(cli.arguments(*line.split()), cwd=cli.directory, env=cli.env, check=True, capture_output=True)
        words = line.split()
        if "--destination-format" not in words:
            assert same(cli.directory / "disk.img", cli.directory / words[-1])
    assert len(ran) == 4


class TestInterrupted:
    @contextlib.contextmanager
    def running(self, cli: Cli, *words: str) -> Iterator[subprocess.Popen[str]]:
        with cli.running("copy", "--limit", "64MiB", *words) as process:
            yield process

    def copying(self, destination: Path) -> None:
        until(lambda: destination.exists() and destination.stat().st_blocks > 0, "something was written")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_cancelled_it_leaves_nothing(self, cli: Cli, large: Path, tmp_path: Path, number: int) -> None:
        new = tmp_path / "new"
        with self.running(cli, str(large), str(new)) as process:
            self.copying(new)
            began = time.monotonic()
            process.send_signal(number)
            out, told = process.communicate(timeout=30)
        assert time.monotonic() - began < 3
        assert (process.returncode, out) == (130, "")
        assert "[transfer-cancelled]" in told
        assert "was removed" in told
        assert "Traceback" not in told
        assert not new.exists()

    def test_cancelled_it_can_be_resumed_by_the_command_that_it_names(
        self, cli: Cli, large: Path, tmp_path: Path
    ) -> None:
        new, kept = tmp_path / "new", tmp_path / "kept"
        with self.running(cli, "--resume", str(kept), str(large), str(new)) as process:
            until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        words = re.search(r"Go on with: volmig (.*)", told)
        assert words is not None
        assert "--limit 67108864B" in words[1]
        cli("-q", *words[1].replace("--limit 67108864B ", "").split())
        assert same(large, new)
        assert not kept.exists()

    def test_killed_it_is_resumed_and_only_the_rest_is_copied(self, cli: Cli, large: Path, tmp_path: Path) -> None:
        new, kept = tmp_path / "new", tmp_path / "kept"
        words = ("--resume", str(kept), str(large), str(new))
        with self.running(cli, *words) as process:
            until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
            assert "[checkpoint-busy]" in cli("copy", *words, check=4).stderr
            process.kill()
            process.wait(timeout=30)
        finished = position(kept)
        assert 0 < finished < LARGE
        shown = cli.json("copy", *words)
        assert shown["bytes_resumed"] == finished
        assert shown["bytes_copied"] == LARGE - finished
        assert shown["source_digest"] == shown["destination_digest"] != ""
        assert same(large, new)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "new"]

    def test_killed_again_and_again_it_is_complete_in_the_end(self, cli: Cli, large: Path, tmp_path: Path) -> None:
        new, kept = tmp_path / "new", tmp_path / "kept"
        positions = [0]
        for _ in range(3):
            with self.running(cli, "--resume", str(kept), str(large), str(new)) as process:
                until(lambda: kept.exists() and position(kept) > positions[-1], "it went on", seconds=60)
                process.kill()
            positions.append(position(kept))
        assert positions == sorted(set(positions))
        assert cli.json("copy", "--resume", str(kept), str(large), str(new))["bytes_resumed"] == positions[-1]
        assert same(large, new)

    def test_a_source_that_was_changed_since_is_refused(self, cli: Cli, large: Path, tmp_path: Path) -> None:
        new, kept = tmp_path / "new", tmp_path / "kept"
        with self.running(cli, "--resume", str(kept), str(large), str(new)) as process:
            until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
            process.kill()
        with large.open("r+b") as file:
            file.write(b"changed")
        done = cli("copy", "--resume", str(kept), str(large), str(new), check=2)
        assert "[checkpoint-mismatch]" in done.stderr
        assert kept.exists()

    def test_a_destination_that_was_changed_since_is_found_out(self, cli: Cli, large: Path, tmp_path: Path) -> None:
        new, kept = tmp_path / "new", tmp_path / "kept"
        with self.running(cli, "--resume", str(kept), str(large), str(new)) as process:
            until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
            process.kill()
        with new.open("r+b") as file:
            file.seek(MIB)
            file.write(b"changed")
        told = cli("copy", "--resume", str(kept), str(large), str(new), check=5).stderr
        assert "[verification-failed]" in told
        assert position(kept) == 0
        again = re.search(r"begin again, from the first byte, with: volmig (.*)", told)
        assert again is not None
        cli("-q", *again[1].split())
        assert same(large, new)
        assert not kept.exists()

    def test_a_status_on_request(self, cli: Cli, large: Path, tmp_path: Path) -> None:
        with self.running(cli, "-q", str(large), str(tmp_path / "new")) as process:
            self.copying(tmp_path / "new")
            process.send_signal(signal.SIGUSR1)
            assert process.stderr is not None
            line = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert re.match(r"copy: .* of 384 MiB \(\d+ %\).*; \d+ bytes", line)

    def test_a_terminal_gets_a_bar(self, cli: Cli, source: Path, tmp_path: Path) -> None:
        shown = Cli(cli.directory, env=environment(TERM="xterm-256color"))
        words = ("copy", "--limit", "8MiB", str(source), str(tmp_path / "new"), "-f", "json")
        with terminal() as (ours, theirs), shown.running(*words, stderr=theirs) as process:
            os.close(theirs)
            text = read_terminal(ours, process)
            out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, text
        assert json.loads(out)["bytes_total"] == SIZE
        assert re.search(r"copy .*━", text)
        assert re.search(r"verify .*━", text)
        assert "100 %" in text


def position(kept: Path) -> int:
    """Return how far a checkpoint says that its copy is."""
    checkpoint = json.loads(kept.read_text())["content"]["checkpoint"]
    return 0 if checkpoint is None else int(checkpoint["position_bytes"])


# --- block devices ----------------------------------------------------------------------------


class Devices:
    """Loop devices over files, and what is done with them; all is undone at the end."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._count = 0

    def loop(self, size_bytes: int = 32 * MIB, backing: str = "", *options: str) -> str:
        if not backing:
            self._count += 1
            file = self._directory / f"disk-{self._count}"
            file.write_bytes(b"")
            os.truncate(file, size_bytes)
            backing = str(file)
        device = run("losetup", "--find", "--show", *options, backing)
        self._stack.callback(run, "losetup", "--detach", device)
        return device

    def partition(self, device: str) -> str:
        """Write a partition table, and make its partition known to kernels that cannot read it too."""
        entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\xff\xff\xff", 2048, 40960)
        with open(device, "r+b", buffering=0) as file:
            file.write((bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa")
        node = f"{device}p1"
        if not Path(node).exists():
            run("addpart", device, "1", "2048", "40960")
        self._stack.callback(run, "delpart", device, "1")
        until(lambda: Path(node).exists(), f"{node} appeared")
        return node

    def mount(self, device: str, *options: str) -> Path:
        self._count += 1
        place = self._directory / f"mount {self._count}"
        place.mkdir()
        run("mount", *options, device, str(place))
        self._stack.callback(run, "umount", str(place))
        run("sync", "--file-system", str(place))
        return place

    def swap(self, path: str) -> None:
        run("mkswap", path)
        run("swapon", path)
        self._stack.callback(run, "swapoff", path)


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[Devices]:
    assert os.geteuid() == 0, "block devices can be made by root only: run this tier as root"
    with contextlib.ExitStack() as stack:
        yield Devices(tmp_path, stack)


def refused(cli: Cli, source: Path | str, device: str, *words: str) -> str:
    """Return why a device is not overwritten, after checking that nothing was written to it."""
    before = Path(device).read_bytes()
    done = cli("copy", *words, str(source), device, check=2)
    assert "[destination-occupied]" in done.stderr
    assert "--force" in done.stderr
    assert Path(device).read_bytes() == before
    return done.stderr


def ext4(device: str, label: str = "") -> None:
    """Make a file system that is complete: nothing is left for the kernel to write in the background once mounted."""
    options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    run("mkfs.ext4", "-q", "-F", "-E", options, *(["-L", label] if label else []), device)


def test_an_empty_device_is_written_and_its_tail_is_kept(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    shown = cli.json("copy", str(source), device)
    assert shown["source_digest"] == shown["destination_digest"] != ""
    assert same(source, Path(device), SIZE)
    back = cli.directory / "back"
    cli("copy", device, str(back))
    assert same(Path(device), back)
    assert back.stat().st_size == 32 * MIB


def test_a_file_system_is_refused_and_force_overwrites_it(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    ext4(device, "my data")
    assert "it holds a file system (ext4, label 'my data')" in refused(cli, source, device)
    done = cli("copy", "--force", str(source), device)
    assert "Overwriting" in done.stderr
    assert "ext4" in done.stderr
    assert same(source, Path(device), SIZE)


def test_a_partition_table_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop(64 * MIB)
    node = devices.partition(device)
    assert "it holds a partition table (dos)" in refused(cli, source, device)
    cli("copy", str(source), node)
    assert same(source, Path(node), SIZE)


def test_swap_space_that_is_not_in_use_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    run("mkswap", device)
    assert "(swap)" in refused(cli, source, device)


def test_a_mounted_device_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    ext4(device)
    place = devices.mount(device)
    told = refused(cli, source, device)
    assert f"it is mounted at {place}; it holds a file system (ext4)" in told
    assert f"lsblk {device}" in told


def test_a_device_that_is_mounted_where_it_cannot_be_seen_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    ext4(device)
    place = cli.directory / "apart"
    place.mkdir()
    script = f"mount {device} {place} && sync --file-system {place} && echo ready && read line; umount {place}"
    arguments = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        told = refused(cli, source, device)
        other.communicate("\n", timeout=30)
    assert "the kernel says that it is in use" in told


def test_a_disk_with_a_mounted_partition_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop(64 * MIB)
    node = devices.partition(device)
    ext4(node)
    place = devices.mount(node)
    assert f"its partition {node} is mounted at {place}" in refused(cli, source, device)
    assert f"it is mounted at {place}" in refused(cli, source, node)


def test_swap_in_use_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    devices.swap(device)
    assert "it is in use as swap" in refused(cli, source, device)
    file = cli.directory / "swapfile"
    file.write_bytes(bytes(8 * MIB))
    file.chmod(0o600)
    devices.swap(str(file))
    assert "it is in use as swap" in refused(cli, source, str(file))


def test_what_a_loop_device_is_made_of_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    outer = devices.loop()
    inner = devices.loop(0, outer)
    assert f"the loop device {inner} is made of it" in refused(cli, source, outer)
    assert f"the loop device {outer} is made of it" in refused(cli, source, str(cli.directory / "disk-1"))


def test_a_device_that_a_process_writes_to_is_refused(cli: Cli, source: Path, devices: Devices) -> None:
    device = devices.loop()
    holder = ["sh", "-c", f"exec 5<>{device}; echo ready; read line"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        told = refused(cli, source, device)
        other.communicate("\n", timeout=30)
    assert f"it is open for writing in process {other.pid} (sh)" in told
    cli("copy", str(source), device)


def test_a_read_only_or_smaller_device_is_refused_even_by_force(cli: Cli, source: Path, devices: Devices) -> None:
    small, fixed = devices.loop(MIB), devices.loop(32 * MIB, "", "--read-only")
    done = cli("copy", "--force", str(source), small, check=2)
    assert f"it has {MIB} bytes, and {SIZE} are to be copied" in done.stderr
    assert not any(Path(small).read_bytes())
    assert "the device is read-only" in cli("copy", "--force", str(source), fixed, check=2).stderr


def test_a_device_and_what_it_is_made_of_are_not_copied_to_each_other(cli: Cli, devices: Devices) -> None:
    device = devices.loop()
    file = cli.directory / "disk-1"
    file.write_bytes(pattern(32 * MIB))
    for one, other in ((device, str(file)), (str(file), device)):
        assert "same storage" in cli("copy", "--force", one, other, check=2).stderr
    node = devices.partition(device)
    assert "same storage" in cli("copy", "--force", node, device, check=2).stderr


def test_a_mounted_source_is_copied_with_a_warning(cli: Cli, devices: Devices) -> None:
    device = devices.loop()
    ext4(device)
    place = devices.mount(device)
    done = cli("copy", device, str(cli.directory / "image"))
    assert f"Warning: {device} is mounted at {place}" in done.stderr
    assert "Warning" not in cli("-q", "copy", device, str(cli.directory / "again")).stderr


def test_the_device_cannot_be_mounted_while_it_is_written(cli: Cli, large: Path, devices: Devices) -> None:
    device = devices.loop(LARGE)
    with cli.running("copy", "--limit", "64MiB", str(large), device) as process:
        until(lambda: any(head(device)), "something was written")
        with pytest.raises(OSError, match="busy"):
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        told = cli("copy", str(large), device, check=2).stderr
        assert f"open for writing in process {process.pid}" in told
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    os.close(os.open(device, os.O_RDONLY | os.O_EXCL))


def head(device: str) -> bytes:
    """Return the beginning of a device, as it is stored."""
    with open(device, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read(MIB)


def test_killed_on_a_device_it_is_resumed_without_force(cli: Cli, large: Path, devices: Devices) -> None:
    device, kept = devices.loop(LARGE + MIB), cli.directory / "kept"
    # What is copied has a signature of its own, which is found on the destination when the copy is resumed.
    ext4(str(large), "copied")
    words = ("copy", "--resume", str(kept), str(large), device)
    with cli.running(*words, "--limit", "64MiB") as process:
        until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
        process.kill()
        process.wait(timeout=30)
    finished = position(kept)
    assert cli.json(*words)["bytes_resumed"] == finished > 0
    assert same(large, Path(device), LARGE)
    assert not kept.exists()


def test_a_device_that_was_used_for_something_else_since_is_refused(cli: Cli, large: Path, devices: Devices) -> None:
    device, kept = devices.loop(LARGE), cli.directory / "kept"
    words = ("copy", "--resume", str(kept), str(large), device)
    with cli.running(*words, "--limit", "64MiB") as process:
        until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
        process.kill()
        process.wait(timeout=30)
    ext4(device, "in the meantime")
    assert "label 'in the meantime'" in refused(cli, large, device, "--resume", str(kept))
    assert kept.exists()


class Numbered:
    """A loop device with a number that it keeps while it is detached and attached again."""

    def __init__(self, stack: contextlib.ExitStack, *options: str) -> None:
        self.options = options
        self.node = run("losetup", "--find")
        stack.callback(self.detach)

    def attach(self, backing: Path) -> None:
        run("losetup", *self.options, self.node, str(backing))

    def detach(self) -> None:
        subprocess.run(["losetup", "--detach", self.node], capture_output=True, check=False)
        until(lambda: not Path(f"/sys/block/{Path(self.node).name}/loop/backing_file").exists(), "it was detached")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    assert os.geteuid() == 0, "block devices can be made by root only: run this tier as root"
    with contextlib.ExitStack() as made:
        yield made


def killed(cli: Cli, kept: Path, *words: str) -> None:
    """Run a copy until it has recorded something, and kill it."""
    with cli.running("copy", "--limit", "64MiB", "--resume", str(kept), *words) as process:
        until(lambda: kept.exists() and position(kept), "a checkpoint was written", seconds=60)
        process.kill()
        process.wait(timeout=30)


def test_a_source_that_was_detached_and_changed_is_refused(cli: Cli, large: Path, stack: contextlib.ExitStack) -> None:
    # Its counters of writes begin anew, and come to what they were.
    device, kept, new = Numbered(stack), cli.directory / "kept", cli.directory / "new"
    device.attach(large)
    killed(cli, kept, device.node, str(new))
    device.detach()
    with large.open("r+b") as file:
        file.write(pattern(MIB, seed=99))
    device.attach(large)
    told = cli("copy", "--resume", str(kept), device.node, str(new), check=2).stderr
    assert "[checkpoint-mismatch]" in told
    assert "or was detached, or the machine restarted: nobody can tell" in told
    assert f"removing {kept}, and --force" in told
    kept.unlink()
    cli("copy", "--force", device.node, str(new))
    assert same(large, new)


def test_another_destination_that_has_the_number_now_is_not_written_to(
    cli: Cli, large: Path, stack: contextlib.ExitStack
) -> None:
    # With an offset it is no longer all of its file, so that nothing but its number is known of it.
    device, kept = Numbered(stack, "--offset", str(MIB)), cli.directory / "kept"
    first, other = cli.directory / "first", cli.directory / "other"
    for backing in (first, other):
        backing.write_bytes(b"")
        os.truncate(backing, LARGE + MIB)
    device.attach(first)
    killed(cli, kept, str(large), device.node)
    device.detach()
    device.attach(other)
    told = cli("copy", "--resume", str(kept), str(large), device.node, check=2).stderr
    assert "[checkpoint-mismatch]" in told
    assert "or it was detached meanwhile" in told
    device.detach()
    assert other.stat().st_blocks == 0


def test_a_loop_device_over_a_part_of_the_source_is_not_written_to(
    cli: Cli, large: Path, stack: contextlib.ExitStack
) -> None:
    device = Numbered(stack, "--offset", str(MIB))
    device.attach(large)
    assert "same storage" in cli("copy", "--force", "--size", "1MiB", str(large), device.node, check=2).stderr


class TestFrozen:
    """A file system that stops answering, and the user who wants out."""

    def told(self, file: Path, word: str, seconds: float) -> None:
        until(lambda: word in file.read_text(), f"it said {word}", seconds)

    @pytest.mark.parametrize("present", [False, True], ids=["new", "empty"])
    def test_the_first_interrupt_ends_with_a_word(self, cli: Cli, large: Path, present: bool) -> None:
        said = cli.directory / "said"
        with mounted(cli.directory, 600 * MIB) as place, thawed(place), said.open("w") as stderr:
            new = place / "new"
            if present:
                new.touch()
            with cli.running("copy", "--limit", "64MiB", str(large), str(new), stderr=stderr) as process:
                # Before it waits for the process, which goes only when the storage answers.
                with thawed(place):
                    until(lambda: new.exists() and new.stat().st_blocks > 0, "something was written")
                    run("fsfreeze", "--freeze", str(place))
                    time.sleep(1)
                    process.send_signal(signal.SIGINT)
                    self.told(said, "[transfer-cancelled]", 4)
                    doing = "emptying" if present else "removing"
                    assert f"{doing} it hangs: its storage does not answer" in said.read_text()
                    until(lambda: has_left(process), "it left", 2)
                assert process.wait(timeout=30) == 130


def has_left(process: subprocess.Popen[str]) -> bool:
    """Say whether a process has ended as far as that is up to it: the kernel keeps it while a request is under way."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return "State:\tZ" in status or bool(process.poll())
