"""What os-brick raises is told as what it means."""

from __future__ import annotations

import pytest

from volmig import errors
from volmig.connectors.brick import Runner, attach_errors


def _attaching(runner: Runner, error: Exception) -> errors.AttachFailed:
    with (
        pytest.raises(errors.AttachFailed) as raised,
        attach_errors(runner, target="iqn.x", protocol="iSCSI", action="attaching"),
    ):
        raise error
    assert raised.value.__cause__ is error
    return raised.value


def test_what_the_last_program_has_said_is_the_reason() -> None:
    runner = Runner()
    assert _attaching(runner, RuntimeError("no  device\nfound")).fields["reason"] == "no device found"
    assert _attaching(runner, KeyError()).fields["reason"] == "KeyError"
    runner.complaint = "iscsiadm: login failed\n"
    failed = _attaching(runner, RuntimeError("no device found"))
    assert failed.fields == {
        "target": "iqn.x",
        "protocol": "iSCSI",
        "action": "attaching",
        "reason": "iscsiadm: login failed",
    }


def test_our_own_errors_stay_as_they_are() -> None:
    own = errors.ExtraMissing(package="os_brick", purpose="it", extra="connectors")
    with (
        pytest.raises(errors.ExtraMissing) as raised,
        attach_errors(Runner(), target="t", protocol="iSCSI", action="attaching"),
    ):
        raise own
    assert raised.value is own
