"""What the guest's scripts say: each value arrives as it was given."""

from __future__ import annotations

import re
import subprocess
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volmig.testing.vm import BedError, guest

TOKEN = "t0"  # noqa: S105
_TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)


def _run(script, tmp_path):
    file = tmp_path / "script.sh"
    file.write_text(script, encoding="utf-8")
    return subprocess.run(["bash", str(file)], capture_output=True, timeout=30, check=False)


@settings(max_examples=25, deadline=None)
@given(arguments=st.lists(_TEXT, max_size=4), value=_TEXT)
def test_arguments_and_variables_arrive_whatever_characters_they_have(tmp_path_factory, arguments, value):
    directory = tmp_path_factory.mktemp("with 'quotes' and $dollars")
    command = ["bash", "-c", 'pwd; printf "%s\\0" "$CHOSEN" "$@"', "name", *arguments]
    script = guest.command_script(
        command, directory=PurePosixPath(directory), environment={"CHOSEN": value, "PATH": "/usr/bin:/bin"}
    )
    done = _run(script, directory)
    place, _, rest = done.stdout.partition(b"\n")
    assert place.decode() == str(directory)
    assert rest.decode().split("\0")[:-1] == [value, *arguments]


def test_the_environment_has_what_was_given_and_nothing_else(tmp_path):
    script = guest.command_script(["env"], directory=PurePosixPath("/"), environment={"ONE": "1", "PATH": "/usr/bin"})
    assert sorted(_run(script, tmp_path).stdout.decode().split()) == ["ONE=1", "PATH=/usr/bin"]


def test_a_program_that_is_missing_has_the_status_of_a_shell(tmp_path):
    environment = {"PATH": "/usr/bin:/bin"}
    script = guest.command_script(["no-such-program"], directory=PurePosixPath("/"), environment=environment)
    assert _run(script, tmp_path).returncode == 127


def test_a_directory_that_is_missing_is_an_error_of_its_own(tmp_path):
    script = guest.command_script(["true"], directory=PurePosixPath(tmp_path / "gone"), environment={})
    assert _run(script, tmp_path).returncode == 126


@pytest.mark.parametrize("name", ["", "A B", "A=B", "1A", "$(x)"])
def test_names_of_variables_cannot_carry_commands(name):
    with pytest.raises(ValueError, match="name of an environment variable"):
        guest.command_script(["true"], directory=PurePosixPath("/"), environment={name: "x"})


def test_a_command_without_words_is_refused():
    with pytest.raises(ValueError, match="empty"):
        guest.command_script([], directory=PurePosixPath("/"), environment={})


def test_the_virtual_environment_is_first_and_the_caller_has_the_last_word():
    made = guest.environment_of(PurePosixPath("/some/venv"), {"HOME": "/elsewhere"})
    assert made["PATH"].startswith("/some/venv/bin:")
    assert made["HOME"] == "/elsewhere"


@pytest.mark.parametrize(
    "script",
    [
        guest.boot_script(token=TOKEN, modules_directory=PurePosixPath("/a b/c")),
        guest.agent_script(token=TOKEN, modules=("dm_mod", "loop")),
    ],
)
def test_the_scripts_are_complete_and_bash_can_read_them(script, tmp_path):
    assert not re.findall(r"@[A-Z_]+@", script)
    file = tmp_path / "script.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)


@pytest.mark.parametrize("name", ["", "a b", "$(x)", "a'b", "../x"])
def test_names_of_modules_cannot_carry_commands(name):
    with pytest.raises(BedError, match="not the name of a kernel module"):
        guest.agent_script(token=TOKEN, modules=("dm_mod", name))
