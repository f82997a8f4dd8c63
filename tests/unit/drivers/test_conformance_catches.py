"""The conformance suite fails for drivers that break the contract: each of these breaks it in one way."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PREAMBLE = """
import contextlib
import os
from dataclasses import replace
import subprocess
import sys
import time

import pytest
from volmig import errors
from volmig.drivers import Capability, StoredObject, VolumeDriver
from volmig.drivers.fake import FakeDriver
from volmig.testing.conformance import Backend, DriverConformance

# The tests whose names do not hold a part are hidden, since collecting all of them takes longer than running these.
def only(part):
    return {name: None for name in dir(DriverConformance) if name.startswith("test_") and part not in name}

class Base(DriverConformance):
    __test__ = False
    driver = FakeDriver
    options = {}
    busy_fault = "fail"

    @pytest.fixture
    def backend(self):
        options = {option.dest: option.default for option in FakeDriver.get_driver_options()}
        driver = self.driver(host="h", backend="b", options=options | self.options)

        def make_object(pool, data):
            driver.add_foreign(pool, "foreign", data)
            return "foreign"

        @contextlib.contextmanager
        def make_busy(driver):
            for method in ("create_volume", "delete_volume", "delete_object", "extend_volume", "migrate_volume",
                           "update_migrated_volume"):
                driver.faults.add(f"{method}:{self.busy_fault}=storage-busy")
            yield
            driver.faults.clear()

        yield Backend(driver=driver, restart=lambda: driver, make_object=make_object, make_busy=make_busy)
        driver.close()

class TestSound(Base):
    __test__ = True
"""

_BROKEN = {
    "Garbage": ('options = {"fake_faults": ["create_volume:garbage"]}', "test_new_volume_reads_as_zeroes_if_claimed"),
    "GarbageBehind": (
        'options = {"fake_faults": ["extend_volume:garbage"]}',
        "test_extend_keeps_data_and_adds_zeroes_if_claimed",
    ),
    "TooSmall": ('options = {"fake_faults": ["create_volume:wrong_size=-1"]}', "test_size_is_exact"),
    "TooLarge": ('options = {"fake_faults": ["create_volume:wrong_size=1"]}', "test_size_is_exact"),
    "Nonsense": ('options = {"fake_faults": ["volume_exists:nonsense"]}', "test_volume_exists_between"),
    "BadStats": ('options = {"fake_faults": ["get_volume_stats:nonsense"]}', "test_stats_have_every_required_key"),
    "LosesWrites": (
        'options = {"fake_connection": "handle", "fake_faults": ["write@70000:lost"]}',
        "test_data_comes_back",
    ),
    "FlipsBits": ('options = {"fake_connection": "handle", "fake_faults": ["write@9:flip"]}', "test_data_comes_back"),
    "CreateOnce": ('options = {"fake_faults": ["create_volume@2:fail"]}', "test_create_repeated_succeeds"),
    "DeleteOnce": ('options = {"fake_faults": ["delete_volume@3:fail"]}', "test_delete_of_an_absent_volume_succeeds"),
    "MigrateOnce": ('options = {"fake_faults": ["migrate_volume@2:fail"]}', "test_native_migration_repeated_succeeds"),
    "RenameOnce": ('options = {"fake_faults": ["update_migrated_volume@2:fail"]}', "test_rename_repeated"),
    "KeepsExport": (
        "class driver(FakeDriver):\n        def list_exports(self):\n            return list(self._made)\n"
        "        def create_export(self, ctxt, volume):\n            self._made = [volume.backend_id]",
        "test_retype_export_and_their_repetition",
    ),
    "ExtendOnce": ('options = {"fake_faults": ["extend_volume@2:fail"]}', "test_extend_repeated_succeeds"),
    "ClaimsMigration": (
        "class driver(FakeDriver):\n        migrate_volume = VolumeDriver.migrate_volume",
        "test_native_migration_keeps_the_data_if_claimed",
    ),
    "ClaimsHandles": (
        "class driver(FakeDriver):\n        open_volume = VolumeDriver.open_volume",
        "test_handle_reads_and_writes_if_claimed",
    ),
    "ClaimsRename": (
        "class driver(FakeDriver):\n        update_migrated_volume = VolumeDriver.update_migrated_volume",
        "test_rename_gives_the_original_id_if_claimed",
    ),
    "ClaimsManage": (
        "class driver(FakeDriver):\n        manage_existing = VolumeDriver.manage_existing",
        "test_managed_object_keeps_its_data_if_claimed",
    ),
    "ClaimsSnapshots": (
        "class driver(FakeDriver):\n        create_snapshot = VolumeDriver.create_snapshot",
        "test_snapshots_come_and_go_if_claimed",
    ),
    "HidesMigration": (
        "class driver(FakeDriver):\n        def __init__(self, **kwargs):\n            super().__init__(**kwargs)\n"
        "            self.__dict__['capabilities'] -= {Capability.NATIVE_MIGRATION}",
        "test_native_migration_keeps_the_data_if_claimed",
    ),
    "Remembers": (
        "class driver(FakeDriver):\n        def volume_exists(self, volume):\n            return True",
        "test_volume_exists_between_create_and_delete",
    ),
    "NoSizeCheck": (
        "class driver(FakeDriver):\n        def _require_size(self, volume, *rest):\n            pass",
        "test_connection_of_a_volume_of_another_size_is_an_error",
    ),
    "CopiesButKeeps": (
        "class driver(FakeDriver):\n        def migrate_volume(self, ctxt, volume, host):\n"
        "            self.create_volume(replace(volume, host=host['host']))\n            return True, {}",
        "test_native_migration_keeps_the_data_if_claimed",
    ),
    "MovesForeign": (
        "class driver(FakeDriver):\n        def migrate_volume(self, ctxt, volume, host):\n            return True, {}",
        "test_foreign_destination_is_declined_and_the_source_is_whole",
    ),
    "Trusting": (
        "class driver(FakeDriver):\n        def _place(self, volume):\n            name = volume.provider_id or "
        "os.path.normpath('volume-' + volume.backend_id)\n            return volume.host.split('#')[1], name",
        "test_hostile_id_is_refused_without_harm",
    ),
    "NamesObjectsByName": (
        "class driver(FakeDriver):\n        def identify_object(self, volume):\n            return volume.backend_id",
        "test_identity_is_another_for_each_object",
    ),
    "RestlessIdentity": (
        "class driver(FakeDriver):\n        def identify_object(self, volume):\n            return os.urandom(8).hex()",
        "test_identity_is_text_that_repeats",
    ),
    "IdentityBySize": (
        "class driver(FakeDriver):\n        def identify_object(self, volume):\n"
        "            return f'{super().identify_object(volume)}-{volume.size_bytes}'",
        "test_identity_outlasts_writing_and_extending",
    ),
    "IdentityByName": (
        "class driver(FakeDriver):\n        def identify_object(self, volume):\n"
        "            return f'{super().identify_object(volume)}-{volume.backend_id}'",
        "test_identity_outlasts_the_rename_after_a_copy",
    ),
    "IdentifiesNothing": (
        "class driver(FakeDriver):\n        def identify_object(self, volume):\n"
        "            return super().identify_object(volume) if self.volume_exists(volume) else 'none'",
        "test_identity_of_a_missing_object_is_an_error",
    ),
    "DeletesBlindly": (
        "class driver(FakeDriver):\n        def delete_object(self, volume, identity):\n"
        "            self.delete_volume(volume)",
        "test_delete_object_leaves_another_object_alone",
    ),
    "DeletesLate": (
        "class driver(FakeDriver):\n        def delete_object(self, volume, identity):\n"
        "            if identity is None or len(identity) == 32:\n                self.delete_volume(volume)",
        "test_late_delete_object_leaves_the_successor_alone",
    ),
    "DeletesNothing": (
        "class driver(FakeDriver):\n        def delete_object(self, volume, identity):\n            pass",
        "test_delete_object_removes_the_one_that_is_meant",
    ),
    "NeedsIdentity": (
        "class driver(FakeDriver):\n        def delete_object(self, volume, identity):\n"
        "            if identity is not None:\n                super().delete_object(volume, identity)",
        "test_delete_object_without_identity_removes_what_has_the_name",
    ),
    "DeletesOnce": (
        'options = {"fake_faults": ["delete_object@2:fail"]}',
        "test_delete_object_of_an_absent_object_succeeds",
    ),
    "AnyStorage": (
        "class driver(FakeDriver):\n        def do_setup(self, ctxt):\n            self.storage_identity = 'mine'",
        "test_other_storage_is_refused_and_left_as_it_is",
    ),
    "AdoptsStorage": (
        "class driver(FakeDriver):\n        storage_found = 'mine'\n        def do_setup(self, ctxt):\n"
        "            wanted, self.storage_identity = self.storage_identity, self.storage_found\n"
        "            if wanted not in {None, self.storage_found}:\n"
        "                raise errors.BackendDown(backend='b', reason='other')",
        "test_other_storage_is_refused_and_left_as_it_is",
    ),
    "NewStorageEachTime": (
        "class driver(FakeDriver):\n        def do_setup(self, ctxt):\n"
        "            self.storage_identity = os.urandom(8).hex()",
        "test_storage_is_known_again",
    ),
    "ForgetsStorage": (
        "class driver(FakeDriver):\n        def do_setup(self, ctxt):\n"
        "            self.storage_identity = self.storage_identity or os.urandom(8).hex()",
        "test_storage_that_was_never_seen_is_taken_as_it_is",
    ),
    "ClaimsListing": (
        "class driver(FakeDriver):\n        list_objects = VolumeDriver.list_objects",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "HidesListing": (
        "class driver(FakeDriver):\n        def __init__(self, **kwargs):\n            super().__init__(**kwargs)\n"
        "            self.__dict__['capabilities'] -= {Capability.LIST}",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsNothing": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            super().list_objects(pool)\n            return []",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsTwice": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return 2 * super().list_objects(pool)",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsWrongSizes": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return [replace(each, size_bytes=-(-each.size_bytes // 4096) * 4096)\n"
        "                    for each in super().list_objects(pool)]",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsWithoutIds": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return [replace(each, backend_id=None) for each in super().list_objects(pool)]",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsIdsAsNames": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return [replace(each, name=each.backend_id or each.name) for each in super().list_objects(pool)]",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsTuples": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return [(each.name, each.size_bytes) for each in super().list_objects(pool)]",
        "test_list_tells_each_volume_once_if_claimed",
    ),
    "ListsFromMemory": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            seen = self.__dict__.setdefault('seen', {})\n"
        "            seen.update({(pool, each.name): each for each in super().list_objects(pool)})\n"
        "            return [each for (where, _), each in seen.items() if where == pool]",
        "test_list_follows_the_rename_after_a_copy",
    ),
    "ListsTheDeleted": (
        "class driver(FakeDriver):\n        def delete_volume(self, volume):\n"
        "            gone = StoredObject(name=volume.backend_name, size_bytes=1, backend_id=volume.backend_id)\n"
        "            self.__dict__.setdefault('gone', {})[gone.name] = gone\n"
        "            super().delete_volume(volume)\n"
        "        def list_objects(self, pool):\n"
        "            present = super().list_objects(pool)\n            names = {each.name for each in present}\n"
        "            gone = self.__dict__.get('gone', {})\n"
        "            return present + [each for name, each in gone.items() if name not in names]",
        "test_list_drops_a_deleted_volume",
    ),
    "ListsAllPools": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            super().list_objects(pool)\n"
        "            return [each for one in self._pools for each in super(type(self), self).list_objects(one)]",
        "test_list_is_of_one_pool",
    ),
    "ListsAnyPool": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return super().list_objects(pool) if pool in self._pools else []",
        "test_list_of_an_unknown_pool_is_refused",
    ),
    "ListsOldSizes": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            first = self.__dict__.setdefault('first', {})\n"
        "            return [replace(each, size_bytes=first.get(each.name, each.size_bytes))\n"
        "                    for each in super().list_objects(pool)]\n"
        "        def create_volume(self, volume):\n"
        "            self.__dict__.setdefault('first', {})[volume.backend_name] = volume.size_bytes\n"
        "            return super().create_volume(volume)",
        "test_list_tells_the_size_after_an_extension",
    ),
    "HidesForeign": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return [each for each in super().list_objects(pool) if each.backend_id]",
        "test_list_tells_foreign_objects_as_foreign",
    ),
    "ClaimsForeign": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return [replace(each, backend_id=each.backend_id or each.name)"
        " for each in super().list_objects(pool)]",
        "test_list_tells_foreign_objects_as_foreign",
    ),
    "LosesMoved": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            return super().list_objects(pool) if pool == self._pools[0] else []",
        "test_list_follows_a_native_migration",
    ),
    "ListsSlowly": (
        "class driver(FakeDriver):\n        def list_objects(self, pool):\n"
        "            names = [each.name for each in super().list_objects(pool)]\n"
        "            for name in names:\n                for _ in range(20):\n"
        "                    size = int(self._objects.size_of(self.backend, pool, name))\n"
        "                    time.sleep(0.001)\n"
        "            return [StoredObject(name=name, size_bytes=size, backend_id=name[7:]) for name in names]",
        "test_list_is_whole_while_volumes_come_and_go",
    ),
    "SetsUpAnew": (
        "class driver(FakeDriver):\n        def setup_storage(self, ctxt):\n"
        "            for pool in self._pools:\n"
        "                for found in self.list_objects(pool):\n"
        "                    self._objects.remove(self.backend, pool, found.name)",
        "test_storage_that_is_there_is_set_up_without_change",
    ),
    "TakesDataDown": (
        "class driver(FakeDriver):\n        def setup_storage(self, ctxt):\n            pass\n\n"
        "        def teardown_storage(self, ctxt, *, delete_data=False):\n"
        "            for pool in self._pools:\n"
        "                for found in self.list_objects(pool):\n"
        "                    self._objects.remove(self.backend, pool, found.name)",
        "test_storage_that_was_taken_down_is_found_again",
    ),
    "BusyAfterwards": ('busy_fault = "fail_after"', "test_busy_creation_leaves_nothing"),
    "BusyAfterDeleting": ('busy_fault = "fail_after"', "test_busy_deletion_leaves_the_volume_whole"),
    "BusyAfterExtending": ('busy_fault = "fail_after"', "test_busy_extension_leaves_the_size"),
    "BusyAfterMoving": ('busy_fault = "fail_after"', "test_busy_migration_leaves_the_volume_at_its_source"),
    "BusyAfterRenaming": ('busy_fault = "fail_after"', "test_busy_rename_leaves_the_copy_under_its_id"),
    "NoMakeObject": (
        "@pytest.fixture\n    def backend(self):\n        options = {o.dest: o.default for o in "
        "FakeDriver.get_driver_options()}\n        driver = FakeDriver(host='h', backend='b', options=options)\n"
        "        yield Backend(driver=driver, restart=lambda: driver)\n        driver.close()",
        "test_managed_object_keeps_its_data_if_claimed",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, request):
    """Run the suite once against a sound driver and all the broken ones, in a process of its own."""

    place = tmp_path_factory.mktemp("suite")
    classes = [
        f"class Test{name}(Base):\n    __test__ = True\n    locals().update(only({test!r}))\n    {body}\n"
        for name, (body, test) in _BROKEN.items()
    ]
    (place / "test_all.py").write_text("\n".join([_PREAMBLE, *classes]))
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=no", "-p", "no:cacheprovider", "-c", "/dev/null"]
    run = subprocess.run(
        [*command, "--rootdir", str(place), str(place / "test_all.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return run.stdout.splitlines()


def test_sound_driver_passes_whole(outcomes):
    sound = [line for line in outcomes if "::TestSound::" in line]
    assert len([line for line in sound if line.startswith("PASSED")]) > 70
    assert [line for line in sound if not line.startswith("PASSED")] == []


@pytest.mark.parametrize("name", list(_BROKEN))
def test_broken_driver_fails_the_test_of_its_breach(outcomes, name):
    test = _BROKEN[name][1]
    failed = [line for line in outcomes if line.startswith("FAILED") and f"::Test{name}::{test}" in line]
    assert failed, f"{test} lets {name} pass"
    assert not [line for line in outcomes if line.startswith("SKIPPED") and f"::Test{name}::" in line]
