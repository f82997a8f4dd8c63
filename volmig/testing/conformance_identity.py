"""Conformance: telling objects of one name apart, and storage from what lies in its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from volmig import errors
from volmig.drivers import Capability
from volmig.model import Volume
from volmig.testing import patterns
from volmig.testing.kit import ODD_BYTES, SIZE_BYTES, Kit

_WRONG = "not-the-identity-of-any-object"


class IdentityConformance:
    """``identify_object``, ``delete_object`` and ``storage_identity``."""

    # --- objects ------------------------------------------------------------------------------------------

    def test_identity_is_text_that_repeats(self, kit: Kit) -> None:
        volume = kit.created()
        identity = kit.driver.identify_object(volume)
        assert identity is None or (isinstance(identity, str) and identity)
        assert kit.driver.identify_object(volume) == identity
        assert kit.ready(kit.backend.restart()).identify_object(volume) == identity

    def test_identity_of_a_missing_object_is_an_error(self, kit: Kit) -> None:
        if kit.driver.identify_object(kit.created()) is None:
            return
        with pytest.raises(errors.VolumeObjectMissing):
            kit.driver.identify_object(kit.volume())

    def test_identity_outlasts_writing_and_extending(self, kit: Kit) -> None:
        volume = kit.created(ODD_BYTES)
        identity = kit.driver.identify_object(volume)
        kit.fill(volume, patterns.dense(volume.size_bytes))
        assert kit.driver.identify_object(volume) == identity
        new_size = kit.backend.size(2 * ODD_BYTES)
        kit.driver.extend_volume(volume, new_size)
        assert kit.driver.identify_object(replace(volume, size_bytes=new_size)) == identity

    def test_identity_outlasts_the_rename_after_a_copy(self, kit: Kit) -> None:
        if not kit.claims(Capability.RENAME):
            return
        copy = kit.created()
        identity = kit.driver.identify_object(copy)
        original = replace(kit.volume(), size_bytes=copy.size_bytes, host="elsewhere@stranger#pool")
        update = kit.driver.update_migrated_volume(kit.ctxt, original, copy, "available")
        assert kit.driver.identify_object(kit.updated(original, update, host=copy.host)) == identity

    def test_identity_is_another_for_each_object(self, kit: Kit) -> None:
        seen = []
        volume = kit.volume()
        for _ in range(5):
            kit.driver.create_volume(volume)
            seen.append(kit.driver.identify_object(volume))
            kit.driver.delete_volume(volume)
        seen.append(kit.driver.identify_object(kit.created()))
        seen.append(kit.driver.identify_object(kit.created()))
        known = [identity for identity in seen if identity is not None]
        assert len(known) in {0, len(seen)}, "some objects have an identity and some have none"
        assert len(set(known)) == len(known), "two objects have one identity"

    def test_delete_object_removes_the_one_that_is_meant(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        bystander = kit.filled(pattern)
        volume = kit.created()
        identity = kit.driver.identify_object(volume)
        kit.driver.delete_object(volume, identity)
        assert kit.driver.volume_exists(volume) is False
        kit.driver.delete_object(volume, identity)
        kit.check(bystander, pattern)

    def test_delete_object_without_identity_removes_what_has_the_name(self, kit: Kit) -> None:
        volume = kit.created()
        kit.driver.delete_object(volume, None)
        assert kit.driver.volume_exists(volume) is False
        kit.driver.delete_object(volume, None)

    def test_delete_object_of_an_absent_object_succeeds(self, kit: Kit) -> None:
        kit.driver.delete_object(kit.volume(), None)
        kit.driver.delete_object(kit.volume(), _WRONG)

    def test_delete_object_leaves_another_object_alone(self, kit: Kit) -> None:
        pattern = patterns.dense(kit.backend.size(ODD_BYTES))
        volume = kit.filled(pattern)
        kit.driver.delete_object(volume, _WRONG)
        kit.check(volume, pattern)

    def test_late_delete_object_leaves_the_successor_alone(self, kit: Kit) -> None:
        volume = kit.created(ODD_BYTES)
        identity = kit.driver.identify_object(volume)
        kit.driver.delete_object(volume, identity)
        if identity is None:
            return
        pattern = patterns.dense(volume.size_bytes)
        kit.driver.create_volume(volume)
        kit.fill(volume, pattern)
        kit.driver.delete_object(volume, identity)
        kit.check(volume, pattern)

    # --- storage ------------------------------------------------------------------------------------------

    def test_storage_is_known_again(self, kit: Kit) -> None:
        identity = kit.driver.storage_identity
        assert identity is None or (isinstance(identity, str) and identity)
        volume = kit.created()
        other = kit.backend.restart()
        other.storage_identity = identity
        kit.ready(other)
        assert other.storage_identity == identity
        assert other.volume_exists(volume) is True

    def test_storage_that_was_never_seen_is_taken_as_it_is(self, kit: Kit) -> None:
        other = kit.backend.restart()
        known, other.storage_identity = kit.driver.storage_identity, None
        kit.ready(other)
        assert other.storage_identity == known

    def test_other_storage_is_refused_and_left_as_it_is(self, kit: Kit) -> None:
        known = kit.driver.storage_identity
        if known is None:
            return
        pattern = patterns.dense(kit.backend.size(SIZE_BYTES))
        volume = kit.filled(pattern)
        before = _promised(kit, volume)
        other = kit.backend.restart()
        other.storage_identity = f"not-{known}"
        with pytest.raises(errors.BackendDown):
            other.do_setup(kit.ctxt)
        assert other.storage_identity == f"not-{known}", "what was on record has been overwritten"
        other.storage_identity = known
        kit.ready(other)
        assert other.storage_identity == known, "the storage has been changed"
        kit.check(volume, pattern, driver=other)
        assert _promised(kit, volume) == before


def _promised(kit: Kit, volume: Volume) -> int | None:
    return kit.pool(volume).get("provisioned_capacity_bytes")
