"""Every error has a code of its own, says what to do, and survives the way to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import typing

import pytest

from volmig import errors

CATEGORIES = (
    errors.RequestError,
    errors.ConfigurationError,
    errors.TemporaryError,
    errors.OperatorError,
    errors.BugError,
    errors.CancelledError,
)
CATALOGUE = list(errors.catalogue())
each_error = pytest.mark.parametrize("cls", CATALOGUE, ids=lambda cls: cls.__name__)


def made(cls: type[errors.VolmigError]) -> errors.VolmigError:
    return cls(**{name: f"<{name}>" for name in cls.field_names()})


def test_the_catalogue_holds_every_concrete_class_once() -> None:
    in_module = {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.VolmigError) and value not in (errors.VolmigError, *CATEGORIES)
    }
    assert {cls for cls in CATALOGUE if cls.__module__ == errors.__name__} == in_module
    assert len(CATALOGUE) == len(set(CATALOGUE))


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CATALOGUE]
    assert sorted(codes) == sorted(set(codes))


@each_error
def test_code_and_docstring(cls: type[errors.VolmigError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code)
    assert cls.code != errors.VolmigError.code
    assert cls.__doc__
    assert cls.__doc__ is not errors.VolmigError.__doc__
    assert inspect.cleandoc(cls.__doc__).splitlines()[0].endswith((".", ":"))


@each_error
def test_it_belongs_to_exactly_one_category(cls: type[errors.VolmigError]) -> None:
    assert sum(issubclass(cls, category) for category in CATEGORIES) == 1


@each_error
def test_it_says_what_happened_and_what_to_do(cls: type[errors.VolmigError]) -> None:
    error = made(cls)
    assert str(error) == error.message
    assert error.message
    assert error.hint
    for name in cls.field_names():
        assert f"<{name}>" in error.message + error.hint
    assert not re.search(r"[{}]", error.message + error.hint)


@each_error
def test_a_missing_field_is_an_error_at_once(cls: type[errors.VolmigError]) -> None:
    names = sorted(cls.field_names())
    if not names:
        assert made(cls).fields == {}
        return
    with pytest.raises(KeyError):
        cls(**dict.fromkeys(names[1:], "x"))


@each_error
def test_it_survives_pickling_and_copying(cls: type[errors.VolmigError]) -> None:
    error = cls(hint="a hint of its own", **dict.fromkeys(cls.field_names(), "x{y}"))
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(other) is cls
        assert other.as_dict() == error.as_dict()
        assert other.fields == error.fields
        assert str(other) == str(error)


@each_error
def test_as_dict_holds_plain_values(cls: type[errors.VolmigError]) -> None:
    error = made(cls)
    assert error.as_dict() == {"code": cls.code, "message": error.message, "hint": error.hint}


def test_a_value_with_braces_is_not_taken_for_a_field() -> None:
    error = errors.VolumeNotFound(volume="{hint} {0}")
    assert "{hint} {0}" in error.message


def test_the_hint_can_be_replaced_and_left_empty() -> None:
    assert errors.EngineClosed(hint="wait").hint == "wait"
    assert errors.EngineClosed(hint="").hint == ""
    assert errors.EngineClosed().hint == errors.EngineClosed.hint_template


def test_every_category_says_what_a_caller_can_do() -> None:
    for category in CATEGORIES:
        assert category.__doc__
        assert category not in CATALOGUE
        assert "code" not in vars(category)


def test_field_names_are_those_of_message_and_hint_together() -> None:
    class Sample(errors.RequestError):
        code: typing.ClassVar[str] = "sample-of-a-test"
        template = "{one} {two!r:>5}"
        hint_template = "{two} {three}"

    assert Sample.field_names() == {"one", "two", "three"}
