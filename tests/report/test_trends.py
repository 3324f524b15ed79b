"""Trends: what is remembered between two documents, and for how long."""

from builders import JOB_ID, job_record
from inbox_daemon.contract.facts import JobFacts, QueueFacts
from inbox_daemon.contract.records import Progress
from inbox_daemon.report.trends import RATE_WINDOW_S, Rate, Speed, Trends


def queue(completed: int, tokens: int, *, running: bool = True) -> QueueFacts:
    """One active job that has come that far."""
    progress = Progress(completed=completed, output_tokens=tokens)
    return QueueFacts(jobs=(JobFacts(job_record(), False, progress, running, 0),))  # noqa: FBT003 - not paused


def test_a_rate_needs_two_moments() -> None:
    """One sample, or two of the same moment, give no speed."""
    rate = Rate()
    rate.add(10.0, 5, 50)
    assert rate.per_second() is None
    rate.add(10.0, 6, 60)
    assert rate.per_second() is None
    rate.add(12.0, 9, 150)
    assert rate.per_second() == (2.0, 50.0)


def test_a_rate_forgets_what_is_older_than_its_window() -> None:
    """A job that was slow an hour ago is shown by its last minute."""
    rate = Rate()
    rate.add(0.0, 0, 0)
    rate.add(1000.0, 1, 1)
    rate.add(1000.0 + RATE_WINDOW_S, 61, 121)
    assert rate.per_second() == (1.0, 2.0)


def test_a_jobs_speed_is_that_of_its_own_progress() -> None:
    """The first look gives none, the second one requests and tokens a second."""
    trends = Trends()
    assert trends.speeds(100.0, queue(0, 0)) == {}
    assert trends.speeds(105.0, queue(10, 40)) == {JOB_ID: Speed(2.0, 8.0)}


def test_a_job_that_is_gone_is_forgotten() -> None:
    """A job that was not running in between starts with no speed again."""
    trends = Trends()
    trends.speeds(100.0, queue(0, 0))
    assert trends.speeds(101.0, queue(0, 0, running=False)) == {}
    assert trends.speeds(102.0, queue(10, 40)) == {}


def test_an_engines_death_is_remembered_from_when_it_was_seen() -> None:
    """Each new generation is a death; one that never died has none."""
    trends = Trends()
    assert trends.died_s_ago(100.0, 0) is None
    assert trends.died_s_ago(110.0, 1) == 0.0
    assert trends.died_s_ago(700.0, 1) == 590.0
    assert trends.died_s_ago(701.0, 3) == 0.0
