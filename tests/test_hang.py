"""Hangs: silence with work in hand, told from work that takes long."""

import pytest

from inbox_daemon.service.stalls import HangDetector


@pytest.fixture
def detector() -> HangDetector:
    """One that is patient for 10 s, or 100 s where no tokens are counted."""
    return HangDetector(hang_s=10.0, request_timeout_s=100.0)


def readings(detector: HangDetector, *rows: tuple[float, int, int, int | None]) -> list[bool]:
    """The answers to readings of (now, in flight, finished, tokens)."""
    return [detector.update(*row) for row in rows]


def test_no_answer_and_no_token_for_too_long_is_a_hang(detector: HangDetector) -> None:
    """It is told once, and the next count begins anew."""
    rows = [(0.0, 5, 1, 7), (9.9, 5, 1, 7), (10.0, 5, 1, 7), (10.5, 5, 1, 7), (21.0, 5, 1, 7)]
    assert readings(detector, *rows) == [False, False, True, False, True]


@pytest.mark.parametrize("progress", [(2, 7), (1, 8), (1, 0)])
def test_any_progress_begins_the_count_anew(
    detector: HangDetector, progress: tuple[int, int]
) -> None:
    """An answer, a token, or a counter that began again, is a sign of life."""
    rows = [(0.0, 5, 1, 7), (9.0, 5, *progress), (18.0, 5, *progress), (19.0, 5, *progress)]
    assert readings(detector, *rows) == [False, False, False, True]


def test_an_idle_engine_never_hangs(detector: HangDetector) -> None:
    """With nothing in flight there is nothing to wait for, and the count begins with work."""
    rows = [(0.0, 0, 1, 7), (1e6, 0, 1, 7), (1e6 + 1, 1, 1, 7), (1e6 + 9, 1, 1, 7)]
    assert not any(readings(detector, *rows))


def test_without_a_count_of_tokens_a_long_answer_is_waited_for(detector: HangDetector) -> None:
    """A server that tells no figures gets the time that a request may take."""
    rows = [(0.0, 1, 0, None), (50.0, 1, 0, None), (99.0, 1, 0, None), (100.0, 1, 0, None)]
    assert readings(detector, *rows) == [False, False, False, True]
