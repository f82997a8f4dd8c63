"""The tables of states: complete, without traps, and with one way only behind the commit point."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volmig.model import PHASE_TRANSITIONS, PUBLIC_STATUS, VOLUME_TRANSITIONS, MigrationStatus, Phase, VolumeStatus

FINAL = {Phase.SUCCESS, Phase.CANCELLED, Phase.ERROR}
_LONGEST_WALK = 40
_MOST_PAUSES = 5


def reachable(start: Phase) -> set[Phase]:
    seen: set[Phase] = set()
    pending = [start]
    while pending:
        for phase in PHASE_TRANSITIONS[pending.pop()]:
            if phase not in seen:
                seen.add(phase)
                pending.append(phase)
    return seen


def test_the_tables_are_total() -> None:
    assert set(PHASE_TRANSITIONS) == set(Phase)
    assert set(PUBLIC_STATUS) == set(Phase)
    assert set(VOLUME_TRANSITIONS) == set(VolumeStatus)
    assert set(PUBLIC_STATUS.values()) == set(MigrationStatus)


def test_every_phase_can_come_about() -> None:
    # Also queued, by way of paused.
    assert reachable(Phase.QUEUED) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_final_phases_have_no_way_out_and_others_come_to_one(phase: Phase) -> None:
    assert phase.is_final == (phase in FINAL)
    assert bool(PHASE_TRANSITIONS[phase]) != phase.is_final
    if not phase.is_final:
        assert reachable(phase) & FINAL


@pytest.mark.parametrize("phase", Phase)
def test_no_phase_follows_itself(phase: Phase) -> None:
    assert phase not in PHASE_TRANSITIONS[phase]


def test_success_only_comes_from_completing() -> None:
    assert {phase for phase, following in PHASE_TRANSITIONS.items() if Phase.SUCCESS in following} == {Phase.COMPLETING}
    assert {phase for phase, following in PHASE_TRANSITIONS.items() if Phase.CANCELLED in following} == {
        Phase.CANCELLING
    }


def test_a_rollback_never_ends_in_cancelled_and_nothing_returns_to_moving_data() -> None:
    assert Phase.CANCELLED not in reachable(Phase.ROLLING_BACK)
    for phase in (Phase.COMPLETING, Phase.CANCELLING, Phase.ROLLING_BACK):
        assert not reachable(phase) & {Phase.QUEUED, Phase.STARTING, Phase.MIGRATING, Phase.CANCELLING}


def test_cancelling_can_be_asked_for_exactly_before_the_data_has_arrived() -> None:
    before = {Phase.QUEUED, Phase.STARTING, Phase.MIGRATING}
    assert {phase for phase in Phase if phase.can_be_cancelled} == before | {Phase.PAUSED}
    assert {phase for phase in Phase if phase.can_be_paused} == before


@given(seed=st.integers(0, 2**32))
def test_any_walk_ends_and_its_public_words_never_go_back(seed: int) -> None:
    choose = random.Random(seed)
    phase, words = Phase.QUEUED, [Phase.QUEUED.public_status]
    pauses = 0
    for _ in range(_LONGEST_WALK):
        if phase.is_final:
            break
        pauses += phase is Phase.PAUSED
        # Nobody pauses it for ever.
        following = PHASE_TRANSITIONS[phase] - ({Phase.PAUSED} if pauses > _MOST_PAUSES else set())
        phase = choose.choice(sorted(following))
        words.append(phase.public_status)
    assert phase.is_final
    assert words[-1] in {MigrationStatus.SUCCESS, MigrationStatus.ERROR, MigrationStatus.NONE}
    assert MigrationStatus.SUCCESS not in words[:-1]
    # To a reader the word changes from moving to not moving once, and back never.
    moving = [
        word in {MigrationStatus.STARTING, MigrationStatus.MIGRATING, MigrationStatus.COMPLETING} for word in words
    ]
    assert moving == sorted(moving, reverse=True)


def test_every_volume_can_be_got_rid_of_and_none_escapes_its_deletion() -> None:
    for start in VolumeStatus:
        seen, pending = {start}, [start]
        while pending:
            for status in VOLUME_TRANSITIONS[pending.pop()] - seen:
                seen.add(status)
                pending.append(status)
        assert VolumeStatus.DELETING in seen
    assert VolumeStatus.AVAILABLE not in VOLUME_TRANSITIONS[VolumeStatus.DELETING]
    assert VolumeStatus.CREATING not in set().union(*VOLUME_TRANSITIONS.values())


def test_a_volume_in_use_is_not_moved_or_changed() -> None:
    assert VOLUME_TRANSITIONS[VolumeStatus.IN_USE] == {VolumeStatus.AVAILABLE}
