"""The table of a volume's moves, walked pair by pair."""

import re

import pytest

import domain.volumes
from domain.volumes.states import BUSY, IDLE, MOVES, VolumeState

CREATING, AVAILABLE, EXPANDING, SNAPSHOTTING, RESTORING, DELETING, ERROR = VolumeState

ALLOWED = {
    (CREATING, AVAILABLE),
    (CREATING, ERROR),
    (AVAILABLE, EXPANDING),
    (AVAILABLE, SNAPSHOTTING),
    (AVAILABLE, RESTORING),
    (AVAILABLE, DELETING),
    (EXPANDING, AVAILABLE),
    (SNAPSHOTTING, AVAILABLE),
    (RESTORING, AVAILABLE),
    (DELETING, ERROR),
    (ERROR, CREATING),
    (ERROR, DELETING),
}


@pytest.mark.parametrize("after", VolumeState)
@pytest.mark.parametrize("before", VolumeState)
def test_a_volume_moves_only_as_the_design_says(before: VolumeState, after: VolumeState) -> None:
    assert (after in MOVES[before]) == ((before, after) in ALLOWED)


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(MOVES) == set(VolumeState)


def test_a_volume_is_either_at_rest_or_somebodys() -> None:
    assert {AVAILABLE, ERROR} == IDLE
    assert {CREATING, EXPANDING, SNAPSHOTTING, RESTORING, DELETING} == BUSY


@pytest.mark.parametrize("state", sorted(BUSY))
def test_an_operation_always_ends_at_rest(state: VolumeState) -> None:
    assert MOVES[state] <= IDLE
    assert MOVES[state]


@pytest.mark.parametrize("state", sorted(IDLE))
def test_a_volume_at_rest_can_always_be_deleted(state: VolumeState) -> None:
    assert DELETING in MOVES[state]


@pytest.mark.parametrize("state", VolumeState)
def test_busy_states_end_in_ing(state: VolumeState) -> None:
    assert (state in BUSY) == state.endswith("ing")


def test_the_drawing_names_every_state() -> None:
    assert set(VolumeState) <= set(re.findall(r"[a-z]+", domain.volumes.__doc__ or ""))
