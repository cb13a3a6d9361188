"""The table of a volume's state moves, checked for every pair of states."""

import pytest

from domain.operations import BUSY, VolumeState
from domain.operations import VOLUME_MOVES as MOVES

CREATING, AVAILABLE, EXPANDING, SNAPSHOTTING, RESTORING, DELETING, ATTACHING, DETACHING, ERROR = VolumeState

IDLE = set(VolumeState) - BUSY

ALLOWED = {
    (CREATING, AVAILABLE),
    (CREATING, ERROR),
    (AVAILABLE, EXPANDING),
    (AVAILABLE, SNAPSHOTTING),
    (AVAILABLE, RESTORING),
    (AVAILABLE, DELETING),
    (AVAILABLE, ATTACHING),
    (AVAILABLE, DETACHING),
    (ATTACHING, AVAILABLE),
    (DETACHING, AVAILABLE),
    (EXPANDING, AVAILABLE),
    (SNAPSHOTTING, AVAILABLE),
    (RESTORING, AVAILABLE),
    (DELETING, ERROR),
    (ERROR, CREATING),
    (ERROR, DELETING),
}


@pytest.mark.parametrize("after", VolumeState)
@pytest.mark.parametrize("before", VolumeState)
def test_volume_makes_exactly_the_allowed_moves(before: VolumeState, after: VolumeState) -> None:
    assert (after in MOVES[before]) == ((before, after) in ALLOWED)


def test_table_has_a_row_for_every_state() -> None:
    assert set(MOVES) == set(VolumeState)


def test_every_state_is_either_idle_or_busy() -> None:
    assert {AVAILABLE, ERROR} == IDLE


@pytest.mark.parametrize("state", sorted(set(VolumeState) & BUSY))
def test_busy_state_leads_to_idle_states(state: VolumeState) -> None:
    assert MOVES[state] <= IDLE
    assert MOVES[state]


@pytest.mark.parametrize("state", sorted(IDLE))
def test_idle_volume_can_be_deleted(state: VolumeState) -> None:
    assert DELETING in MOVES[state]


@pytest.mark.parametrize("state", VolumeState)
def test_exactly_the_busy_states_end_in_ing(state: VolumeState) -> None:
    assert (state in BUSY) == state.endswith("ing")
