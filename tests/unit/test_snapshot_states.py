"""The table of a snapshot's state moves, checked for every pair of states."""

import re

import pytest

import domain.snapshots
from domain.operations import BUSY, SnapshotState
from domain.operations import SNAPSHOT_MOVES as MOVES

TAKING, READY, RESTORING, CLONING, DELETING, ERROR = SnapshotState

IDLE = set(SnapshotState) - BUSY

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
def test_snapshot_makes_exactly_the_allowed_moves(before: SnapshotState, after: SnapshotState) -> None:
    assert (after in MOVES[before]) == ((before, after) in ALLOWED)


def test_table_has_a_row_for_every_state() -> None:
    assert set(MOVES) == set(SnapshotState)


def test_every_state_is_either_idle_or_busy() -> None:
    assert {READY, ERROR} == IDLE


@pytest.mark.parametrize("state", sorted(set(SnapshotState) & BUSY))
def test_busy_state_leads_to_idle_states(state: SnapshotState) -> None:
    assert MOVES[state] - {state} <= IDLE
    assert MOVES[state] & IDLE


def test_only_clones_share_a_snapshot() -> None:
    assert {state for state in SnapshotState if state in MOVES[state]} == {CLONING}


@pytest.mark.parametrize("state", SnapshotState)
def test_exactly_the_busy_states_end_in_ing(state: SnapshotState) -> None:
    assert (state in BUSY) == state.endswith("ing")


def test_idle_snapshot_can_be_deleted() -> None:
    assert DELETING in MOVES[READY] & MOVES[ERROR]


def test_package_docstring_names_every_state() -> None:
    assert set(SnapshotState) <= set(re.findall(r"[a-z]+", domain.snapshots.__doc__ or ""))
