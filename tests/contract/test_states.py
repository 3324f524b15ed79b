"""States: the one table of moves, and the names that others rely on."""

import pytest

from inbox_daemon.contract.errors import Blame, IllegalTransitionError
from inbox_daemon.contract.states import TRANSITIONS, BatchStatus, Event, JobState, Priority, after
from inbox_daemon.spool import FOLDERS

LEGAL = [(state, event, target) for (state, event), target in TRANSITIONS.items()]
ILLEGAL = [(s, e) for s in JobState for e in Event if (s, e) not in TRANSITIONS]


@pytest.mark.parametrize(("state", "event", "target"), LEGAL)
def test_a_move_of_the_table_leads_to_its_target(
    state: JobState, event: Event, target: JobState
) -> None:
    """Each move of the table is allowed."""
    assert after(state, event) is target


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_any_other_move_is_a_bug(state: JobState, event: Event) -> None:
    """A move that the table does not have raises, and blames the program."""
    with pytest.raises(IllegalTransitionError, match=str(state)) as caught:
        after(state, event)
    assert caught.value.blame is Blame.BUG


def test_a_job_ends_where_no_move_leads_on() -> None:
    """Published, refused and quarantined jobs stay where they are."""
    leaving = {state for state, _ in TRANSITIONS}
    assert set(JobState) - leaving == {
        JobState.PUBLISHED,
        JobState.REJECTED,
        JobState.QUARANTINED,
    }


def test_every_state_can_be_reached_and_left_to_an_end() -> None:
    """From a claim each other state is reached, and from each of those an end."""
    reached, ends = {JobState.CLAIMED}, set(TRANSITIONS.values()) - {s for s, _ in TRANSITIONS}
    for _ in JobState:
        reached |= {target for (state, _), target in TRANSITIONS.items() if state in reached}
    assert reached == set(JobState)
    for start in JobState:
        onward = {start}
        for _ in JobState:
            onward |= {target for (state, _), target in TRANSITIONS.items() if state in onward}
        assert onward & ends


def test_every_state_is_a_folder_of_the_spool() -> None:
    """The directory says which state a job is in, so each state has one."""
    assert {state.value for state in JobState} <= set(FOLDERS)


def test_status_words_are_those_of_openais_batch() -> None:
    """A client of OpenAI's Batch finds the words that it knows, and no other."""
    words = "validating failed in_progress finalizing completed expired cancelling cancelled"
    assert [status.value for status in BatchStatus] == words.split()


def test_priorities_are_ordered() -> None:
    """High comes before normal and normal before low."""
    assert sorted(Priority, key=lambda p: p.level) == [
        Priority.HIGH,
        Priority.NORMAL,
        Priority.LOW,
    ]
