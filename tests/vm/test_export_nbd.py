"""Volumes over NBD with TLS: read and written by the copy itself from a server on the same host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.functional.certificates import make_all

from .exports import CONTENT, SLOWLY, assert_refused_after_a_write_on_its_host, yard

pytestmark = pytest.mark.timeout(900)


def test_a_volume_migrates_through_its_export(tmp_path: Path) -> None:
    with yard(tmp_path, "nbd", **_tls(tmp_path)) as place:
        pool = f"right#{place.right.name}"
        handle = place.bench.engine.migrate(place.volume.id, f"here@{pool}", bandwidth_limit_bytes=SLOWLY)
        handle.result(600)
        place.bench.assert_moved(place.volume, pool, CONTENT)


def test_what_a_program_on_its_host_writes_meanwhile_is_found_out(tmp_path: Path) -> None:
    with yard(tmp_path, "nbd", **_tls(tmp_path)) as place:
        assert_refused_after_a_write_on_its_host(place)


def _tls(root: Path) -> dict[str, str]:
    made = make_all(root / "tls")
    for path in (made / "client").iterdir():
        # With its rights: a key that everybody can read is refused.
        shutil.copy(path, made / "server")
    return {"target_tls_directory": str(made / "server"), "target_run_directory": str(root / "run")}
