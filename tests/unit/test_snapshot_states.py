"""The table of a snapshot's moves, walked pair by pair."""

import re

import pytest

import domain.snapshots
from domain.snapshots.states import BUSY, IDLE, MOVES, SnapshotState

TAKING, READY, RESTORING, CLONING, DELETING, ERROR = SnapshotState

ALLOWED = {
    (TAKING, READY),
    (TAKING, ERROR),
    (READY, RESTORING),
    (READY, CLONING),
    (READY, DELETING),
    (RESTORING, READY),
    (CLONING, READY),
    (CLONING, CLONING),
    (DELETING, ERROR),
    (ERROR, DELETING),
    (ERROR, TAKING),
}


@pytest.mark.parametrize("after", SnapshotState)
@pytest.mark.parametrize("before", SnapshotState)
def test_a_snapshot_moves_only_as_the_design_says(before: SnapshotState, after: SnapshotState) -> None:
    assert (after in MOVES[before]) == ((before, after) in ALLOWED)


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(MOVES) == set(SnapshotState)


def test_a_snapshot_is_either_at_rest_or_somebodys() -> None:
    assert {READY, ERROR} == IDLE
    assert {TAKING, RESTORING, CLONING, DELETING} == BUSY


@pytest.mark.parametrize("state", sorted(BUSY))
def test_an_operation_always_ends_at_rest(state: SnapshotState) -> None:
    assert MOVES[state] - {state} <= IDLE
    assert MOVES[state] & IDLE


def test_only_clones_share_a_snapshot() -> None:
    assert {state for state in SnapshotState if state in MOVES[state]} == {CLONING}


@pytest.mark.parametrize("state", SnapshotState)
def test_busy_states_end_in_ing(state: SnapshotState) -> None:
    assert (state in BUSY) == state.endswith("ing")


def test_a_snapshot_at_rest_can_always_be_deleted() -> None:
    assert DELETING in MOVES[READY] & MOVES[ERROR]


def test_the_drawing_names_every_state() -> None:
    assert set(SnapshotState) <= set(re.findall(r"[a-z]+", domain.snapshots.__doc__ or ""))
