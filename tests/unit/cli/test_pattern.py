from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from volmig.cli import pattern

MIB = 1024**2
SIZE = 17 * MIB + 12345


def written(path: Path, size_bytes: int) -> Path:
    with path.open("w+b") as image:
        image.truncate(size_bytes)
        pattern.write(image, size_bytes)
    return path


def difference(path: Path, size_bytes: int) -> int | None:
    with path.open("rb", buffering=0) as image:
        return pattern.first_difference(image, size_bytes)


@pytest.mark.parametrize("size_bytes", [1, 512, 513, 4097, MIB, MIB + 1, SIZE])
def test_what_is_written_is_recognised_and_has_the_digest(tmp_path: Path, size_bytes: int) -> None:
    image = written(tmp_path / "image", size_bytes)
    assert image.stat().st_size == size_bytes
    assert difference(image, size_bytes) is None
    assert hashlib.sha256(image.read_bytes()).hexdigest() == pattern.digest(size_bytes)


def test_a_changed_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    image = written(tmp_path / "image", SIZE)
    content = image.read_bytes()
    for offset in (0, 4 * MIB, 4 * MIB - 1, 6 * MIB + 77, 9 * MIB + 5100, SIZE - 1):
        with image.open("r+b") as changed:
            changed.seek(offset)
            changed.write(bytes([content[offset] ^ 1]))
        assert difference(image, SIZE) == offset
        image.write_bytes(content)


def test_pieces_in_each_other_s_place_are_found(tmp_path: Path) -> None:
    image = written(tmp_path / "image", SIZE)
    content = bytearray(image.read_bytes())
    content[:MIB], content[MIB : 2 * MIB] = content[MIB : 2 * MIB], content[:MIB]
    image.write_bytes(content)
    assert difference(image, SIZE) == 0


@pytest.mark.parametrize("by", [-1, -MIB, 1])
def test_another_size_is_found(tmp_path: Path, by: int) -> None:
    image = written(tmp_path / "image", SIZE)
    with image.open("r+b") as changed:
        changed.truncate(SIZE + by)
    assert difference(image, SIZE) == min(SIZE, SIZE + by)


def test_it_has_data_holes_zeroes_and_pieces(tmp_path: Path) -> None:
    kinds = {pattern.kind_of(offset // pattern.BLOCK_BYTES) for offset, _ in pattern.blocks(SIZE)}
    assert kinds == set("dhzp")
    assert written(tmp_path / "image", SIZE).stat().st_blocks * 512 < SIZE * 3 // 4
