"""The reference pages made from code hold all of the code's errors, options, states, steps and commands."""

from __future__ import annotations

import enum

import pytest
from volmigdoc import calls, catalogue, commands, endings, options, states
from volmigdoc.docstrings import member_docs

from volmig import errors
from volmig.cli.report import ExitStatus
from volmig.conf import backend
from volmig.conf.opts import GROUPS
from volmig.drivers import Capability
from volmig.drivers.fake import FakeDriver
from volmig.drivers.file import FileDriver
from volmig.manager.policies import POLICIES
from volmig.migration.steps import DRIVER_STEPS, HOST_STEPS, ROLLBACK_STEPS
from volmig.model import Method, MigrationStatus, Phase, VolumeStatus


def _between(lines, title):
    """Return the lines below a heading, to the next one."""
    start = lines.index(title) + 2
    ends = [
        number - 1
        for number in range(start + 1, len(lines))
        if lines[number] and lines[number - 1] and set(lines[number]) <= set("-^")
    ]
    return lines[start : min(ends, default=len(lines))]


class TestErrors:
    def test_each_error_has_a_section_with_all_that_is_shown(self):
        lines = catalogue.error_lines()
        for cls in errors.catalogue():
            text = "\n".join(_between(lines, cls.code))
            assert f".. py:exception:: volmig.errors.{cls.__name__}" in text
            assert f"{catalogue.shown(cls.template)} [{cls.code}]" in text
            assert (f"   hint: {catalogue.shown(cls.hint_template)}" in text) == bool(cls.hint_template)
            assert (cls.__doc__ or "").splitlines()[0] in text

    def test_each_error_is_there_once(self):
        lines = catalogue.error_lines()
        codes = [cls.code for cls in errors.catalogue()]
        assert [lines.count(code) for code in codes] == [1] * len(codes)
        assert len(set(codes)) == len(codes)

    def test_categories_tell_their_exit_status(self):
        lines = catalogue.error_lines()
        assert "Exit status 2." in _between(lines, "Change the request")
        assert "Exit status 3." in _between(lines, "Change the configuration")
        assert "Exit status 4." in _between(lines, "Try again later")
        assert "Exit status 5." in _between(lines, "Call an operator")
        assert "Exit status 6." in _between(lines, "Report a bug")
        assert "Exit status 130." in _between(lines, "Somebody asked for it")

    def test_error_without_category_is_refused(self):
        with pytest.raises(ValueError, match="VolmigError belongs to no category"):
            catalogue.category(errors.VolmigError)

    def test_fields_are_shown_by_name(self):
        assert catalogue.shown("There is no {volume!r} of {size:g}.") == "There is no <volume> of <size>."


class TestOptions:
    @pytest.mark.parametrize(
        ("heading", "described"),
        [
            *((f"[{module.GROUP}]", module.OPTIONS) for module in GROUPS),
            ("A backend's group", backend.OPTIONS),
            ("Driver file", FileDriver.get_driver_options()),
            ("Driver fake", FakeDriver.get_driver_options()),
        ],
    )
    def test_each_option_is_described_under_its_group(self, heading, described):
        lines = _between(options.option_lines(), heading)
        names = [line.split("``")[1] for line in lines if line.startswith("``")]
        assert names == [option.name for option in described]
        assert all(option.help and option.help.endswith(".") for option in described)

    def test_type_range_and_default_are_told(self):
        lines = options.option_lines()
        assert "``lease_seconds`` : number, 2 to 3600, default ``30``" in lines
        assert "``max_concurrent_migrations`` : whole number, 1 to 1024, default ``8``" in lines
        assert "``driver_migrate_timeout_seconds`` : number, 0.1 to 2592000, default ``86400``" in lines
        assert "``file_directory`` : text, required" in lines
        assert "``file_read_only`` : true or false, default ``false``" in lines
        assert "``host`` : text, default this machine's host name" in lines
        assert "   * ``compare``: read both ends again and compare each byte" in lines


class TestEndings:
    def test_each_error_is_advised_upon_or_never_ends_a_migration(self):
        codes = {cls.code for cls in errors.catalogue()}
        assert set(endings.ADVICE) | endings.NEVER == codes
        assert not set(endings.ADVICE) & endings.NEVER

    def test_each_row_has_what_happened_and_what_to_do(self):
        lines = endings.ending_lines()
        for cls in errors.catalogue():
            told = [number for number, line in enumerate(lines) if f"<error-{cls.code}>" in line]
            assert len(told) == (cls.code in endings.ADVICE)
            if told:
                assert (cls.__doc__ or "").splitlines()[0] in lines[told[0] + 1]
                assert endings.ADVICE[cls.code] in lines[told[0] + 2]


class TestCalls:
    def test_each_method_has_its_treatment_and_its_time(self):
        text = "\n".join(calls.call_lines())
        for method, policy in POLICIES.items():
            assert f"   * - ``{method}``\n     - ``{policy.repetition.value}``\n     - {policy.reason}\n" in text


class TestStates:
    @pytest.mark.parametrize(
        ("make", "members"),
        [
            (states.volume_status_lines, VolumeStatus),
            (states.migration_status_lines, MigrationStatus),
            (states.phase_lines, Phase),
            (states.method_lines, Method),
        ],
    )
    def test_each_state_has_a_row_with_its_meaning(self, make, members):
        text = "\n".join(make())
        for member in members:
            assert f"   * - ``{member.value}``\n     - {member_docs(members)[member.name]}\n" in text

    def test_methods_without_steps_are_said_to_be_missing(self):
        lines = states.method_lines()
        told = {member: lines[lines.index(f"   * - ``{member.value}``") + 2].strip(" -") for member in Method}
        assert [member for member, answer in told.items() if answer == "yes"] == [
            Method.DRIVER,
            Method.BLOCK,
            Method.FILE,
            Method.ROLLBACK,
        ]

    def test_capabilities_and_steps_are_complete(self):
        assert all(f"``{member.name}``" in "\n".join(states.capability_lines()) for member in Capability)
        assert all(f"``{step.name}``" in "\n".join(states.host_step_lines()) for step in HOST_STEPS)
        assert all(f"``{step.name}``" in "\n".join(states.driver_step_lines()) for step in DRIVER_STEPS)
        assert all(f"``{step.name}``" in "\n".join(states.rollback_step_lines()) for step in ROLLBACK_STEPS)

    def test_phases_tell_whether_they_can_be_paused_and_cancelled(self):
        lines = states.phase_lines()

        def answers(phase):
            row = lines.index(f"   * - ``{phase.value}``")
            return tuple(line.strip(" -") for line in lines[row + 3 : row + 5])

        assert answers(Phase.MIGRATING) == ("yes", "yes")
        assert answers(Phase.PAUSED) == ("yes", "is")
        assert answers(Phase.COMPLETING) == ("no", "no")
        assert answers(Phase.SUCCESS) == ("ended", "ended")

    def test_member_without_docstring_is_refused(self):
        with pytest.raises(ValueError, match="no docstring below BARE"):
            member_docs(_Incomplete)


class _Incomplete(enum.StrEnum):
    TOLD = "told"
    """What it is."""
    BARE = "bare"


class TestCommands:
    def test_each_command_has_a_section_with_all_its_arguments(self):
        lines = commands.command_lines()
        for name, cls in commands.commands().items():
            text = "\n".join(_between(lines, f"volmig {name}"))
            parser = commands._parser(name, cls)
            own = commands.own_actions(parser)
            assert all(f"``{option}``" in text for action in own for option in action.option_strings)
            assert all(f"``{action.metavar}``" in text for action in own if not action.option_strings)
            assert all(f"``{column}``" in text for column in getattr(cls, "columns", ()))

    def test_output_options_are_told_once_with_all_formats(self):
        text = "\n".join(commands.output_option_lines())
        assert text.count("``--format``") == 1
        assert "``{csv,json,shell,table,value,yaml}``" in text
        assert "SUPPRESS" not in text

    def test_global_options(self):
        text = "\n".join(commands.global_option_lines())
        for option in ("--config-file", "--debug", "--verbose", "--quiet", "--version"):
            assert f"``{option}``" in text

    def test_exit_statuses(self):
        lines = commands.exit_status_lines()
        assert all(f"   * - {int(status)}" in lines for status in ExitStatus)
