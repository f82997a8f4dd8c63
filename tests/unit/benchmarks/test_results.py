"""Medians, ratios and goals."""

from __future__ import annotations

import pytest

from benchmarks.transfer.goals import goals
from benchmarks.transfer.peers import DD, ENTRANTS, NAMES, OURS, OURS_DIGEST, OURS_TOLD, rotated
from benchmarks.transfer.results import Results, spread, tables

from .fabricated import results


def test_spread():
    found = spread(iter([3.0, 1.0, 10.0]))
    assert (found.median, found.low, found.high) == (3.0, 1.0, 10.0)
    assert spread([1.0, 2.0]).median == 1.5


def test_ratios_are_those_of_medians_and_the_best_peer_is_not_ours():
    made = results({OURS: [1.0, 2.0, 9.0], DD: [8.0, 6.0, 7.0], "cp": [4.0, 3.0, 3.0]}, cpu={OURS: 2.0})
    (table,) = tables(made, DD)
    assert table.best_peer().entrant == "cp"
    ours, cp = table.row(OURS), table.row("cp")
    assert (ours.to_best, ours.to_dd) == (1.5, 3.5)
    assert (cp.to_best, cp.to_dd) == (1.0, 7 / 3)
    assert ours.cpu_per_gib == 0.5
    assert ours.is_checked


def test_one_failure_takes_the_row_and_the_place_among_the_best():
    made = results({OURS: [2.0], DD: [8.0], "cp": [1.0]}, errors={"cp": "wrong"})
    (table,) = tables(made, DD)
    assert table.row("cp") is None
    assert table.failed == {"cp": "wrong"}
    assert table.row(OURS).to_best == 4.0
    assert [run.entrant for run in made.failures()] == ["cp"]


def test_without_the_others_there_are_no_ratios():
    (table,) = tables(results({OURS: [2.0]}), DD)
    assert (table.row(OURS).to_best, table.row(OURS).to_dd) == (None, None)
    assert goals([table]) == []


def test_json_and_back():
    made = results({OURS: [1.0], DD: [2.0]}, errors={"cp": "wrong"})
    assert Results.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("shape", "peer", "dd", "cpu", "digest", "met"),
    [
        ("dense", 1.25, 1.4, 0.33, 1.35, [True, True, True, True]),
        ("dense", 1.24, 1.39, 0.34, 1.36, [False, False, False, False]),
        ("scattered", 1.25, 5.0, 0.33, 1.1, [True, True, True, True]),
        ("scattered", 1.24, 4.9, 0.34, 1.11, [False, False, False, False]),
        ("zeroes", 1.0, 9.0, 0.33, 9.0, [True, True]),
        ("zeroes", 0.99, 9.0, 0.34, 9.0, [False, False]),
        ("pattern", 0.97, 9.0, 0.33, 9.0, [True, True]),
        ("pattern", 0.96, 9.0, 0.33, 9.0, [False, True]),
        ("empty", 0.97, 20.0, 0.33, 1.1, [True, True, True, True]),
        ("empty", 0.96, 19.0, 0.34, 1.2, [False, False, False, False]),
    ],
)
def test_goals(shape, peer, dd, cpu, digest, met):
    walls = {OURS: [1.0], OURS_DIGEST: [digest - 1e-9], DD: [dd], "cp": [peer]}
    made = results(walls, shape=shape, cpu={OURS: cpu, DD: 1.0})
    assert [goal.is_met for goal in goals(tables(made, DD))] == met


def test_on_loop_devices_the_one_that_is_told_is_judged():
    made = results({OURS: [9.0], OURS_TOLD: [1.0], DD: [2.0], "cp": [1.5]}, kind="loop")
    found = goals(tables(made, DD))
    assert found[0].found == "1.50"
    assert found[0].is_met


def test_a_copy_of_ours_that_fails_is_a_goal_missed():
    made = results({DD: [2.0], "cp": [1.5]}, errors={OURS: "no"})
    (goal,) = goals(tables(made, DD))
    assert not goal.is_met


def test_rotation_lets_each_begin_once():
    rounds = [rotated(ENTRANTS, number) for number in range(len(ENTRANTS))]
    assert [order[0] for order in rounds] == list(ENTRANTS)
    assert all({entrant.name for entrant in order} == set(NAMES) for order in rounds)
    assert rotated(ENTRANTS, len(ENTRANTS)) == list(ENTRANTS)
    assert rotated([], 3) == []


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)
    assert {DD, OURS, OURS_TOLD, OURS_DIGEST} <= set(NAMES)
