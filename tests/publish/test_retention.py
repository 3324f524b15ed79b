"""Retention: only what has ended goes, the oldest first, and never more than is asked for."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from builders import JOB_ID, config, dead_letter, job_record, request
from inbox_daemon.contract.records import Checkpoint, Progress
from inbox_daemon.publish.retention import Kept, retain, surplus
from inbox_daemon.spool import durable
from miniature import Miniature
from spool_files import names

DAY = 86400.0
NOW = 100 * DAY
OFF = dict.fromkeys(
    (
        "outbox_days",
        "outbox_max_bytes",
        "rejected_days",
        "rejected_max_bytes",
        "dead_letter_days",
        "dead_letter_max_bytes",
    ),
    0,
)

# -- the choice ---------------------------------------------------------------------

KEPT = st.lists(
    st.builds(
        Kept,
        st.integers(0, 10**9),
        st.floats(0, NOW),
        st.integers(0, 1000),
    ),
    max_size=20,
    unique_by=lambda item: item.what,
)


@given(KEPT, st.sampled_from([0.0, 1.0, 50.0]), st.sampled_from([0, 1, 500, 5000]))
def test_what_stays_keeps_both_limits_and_what_goes_had_to(
    kept: list[Kept[int]], days: float, max_bytes: int
) -> None:
    """Nothing too old and no more bytes than allowed stay, and not one thing more goes."""
    gone = set(surplus(kept, NOW, days, max_bytes))
    staying = [item for item in kept if item.what not in gone]
    if days:
        assert all(NOW - item.at <= days * DAY for item in staying)
    if max_bytes:
        assert sum(item.size for item in staying) <= max_bytes
    young = [i for i in kept if i.what in gone and not (days and NOW - i.at > days * DAY)]
    for item in young:  # each of these went for its bytes: with it the limit would not be kept
        newer = [i for i in kept if i.at > item.at or i in staying]
        assert item.size + sum(i.size for i in newer) > max_bytes > 0 or item.size == 0


def test_no_limit_keeps_everything() -> None:
    """A limit of 0 removes nothing."""
    assert surplus([Kept(1, 0.0, 10**12)], NOW, 0, 0) == []


def test_the_oldest_goes_first() -> None:
    """To make room the newest is kept."""
    kept = [Kept("new", 3.0, 10), Kept("old", 1.0, 10), Kept("middle", 2.0, 10)]
    assert surplus(kept, NOW, 0, 20) == ["old"]
    assert surplus(kept, NOW, 0, 5) == ["old", "middle", "new"]


# -- the removal --------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Miniature]:
    """A daemon on an empty spool."""
    daemon = Miniature(tmp_path / "spool")
    yield daemon
    daemon.close()


def keep(daemon: Miniature, now: float, **rules: Any) -> int:  # noqa: ANN401 - any rule
    """Remove what is over by these rules alone."""
    return retain(config(retention=OFF | rules), daemon.spool, daemon.ledger, now)


def finish(daemon: Miniature, name: str, at: float) -> None:
    """Publish a job that ended at a moment."""
    (daemon.spool.inbox / f"{name}.jsonl").write_bytes(request(name) + b"\n")
    daemon.live()
    record = next(r for r in daemon.ledger.jobs() if r.name == name)
    daemon.ledger.update(record.model_copy(update={"finished_at": at}))
    os.utime(daemon.spool.outbox / name / "status.json", (at, at))


def test_old_results_go_and_new_ones_stay(daemon: Miniature) -> None:
    """A folder that was not fetched within its days is removed whole."""
    finish(daemon, "old", NOW - 10 * DAY)
    finish(daemon, "new", NOW - 1 * DAY)
    assert keep(daemon, NOW, outbox_days=5) >= 1
    assert names(daemon.spool.outbox) == {"new"}
    assert names(daemon.spool.claimed) == set()


def test_results_from_a_clock_that_was_behind_stay(daemon: Miniature) -> None:
    """A file's time may be of a wrong clock; the job is known to have ended later."""
    finish(daemon, "new", NOW - 1 * DAY)
    os.utime(daemon.spool.outbox / "new" / "status.json", (0, 0))
    assert keep(daemon, NOW, outbox_days=5) == 0
    assert names(daemon.spool.outbox) == {"new"}


def test_results_above_the_bytes_allowed_go(daemon: Miniature) -> None:
    """By size, the oldest folders make room."""
    finish(daemon, "old", NOW - 2 * DAY)
    finish(daemon, "new", NOW - 1 * DAY)
    sizes = [size for _, _, size in daemon.spool.published_folders()]
    keep(daemon, NOW, outbox_max_bytes=max(sizes))
    assert names(daemon.spool.outbox) == {"new"}


def test_nothing_unfinished_ever_goes(daemon: Miniature) -> None:
    """Active jobs, what lies in inbox/ or quarantine/, and files of other programs stay."""
    (daemon.spool.inbox / "job.jsonl").write_bytes(request("a") + b"\n")
    daemon.take_drops()
    daemon.start()
    (daemon.spool.inbox / "waits.jsonl").write_bytes(b"x")
    (daemon.spool.quarantine / "kept").write_bytes(b"x")
    (daemon.spool.outbox / "foreign").mkdir()
    record = daemon.ledger.jobs()[0]
    letters = [dead_letter(1, record.id, last_at=0.0)]
    daemon.ledger.checkpoint([Checkpoint(record.id, Progress(), dead=letters)])
    everything = dict.fromkeys(OFF, 1)
    assert retain(config(retention=everything), daemon.spool, daemon.ledger, 1e12) == 0
    assert names(daemon.spool.running) == {record.id}
    assert names(daemon.spool.inbox) == {"high", "low", "waits.jsonl"}
    assert names(daemon.spool.quarantine) == {"kept"}
    assert names(daemon.spool.outbox) == {"foreign"}
    assert daemon.ledger.dead_count() == 1


def test_old_refusals_go_whole(daemon: Miniature) -> None:
    """A refused file goes with its reason."""
    for name, at in (("old", NOW - 40 * DAY), ("new", NOW)):
        (daemon.spool.inbox / f"{name}.jsonl").write_bytes(b"nope\n")
        daemon.take_drops()
        os.utime(daemon.spool.rejected / f"{name}.reason.json", (at, at))
    assert keep(daemon, NOW, rejected_days=30) == 1
    assert names(daemon.spool.rejected) == {"new.jsonl", "new.reason.json"}


def add_letters(daemon: Miniature, ended: dict[str, float], **fields: Any) -> dict[str, str]:  # noqa: ANN401 - any field
    """Two dead letters of each job that ended at a moment; returns the jobs' ids."""
    found = {}
    for number, (name, at) in enumerate(ended.items()):
        job_id = found[name] = f"{JOB_ID[:-1]}{number}"
        daemon.ledger.accept(job_record(job_id, name, finished_at=at), [])
        letters = [dead_letter(line, job_id, last_at=at, **fields) for line in (1, 2)]
        daemon.ledger.checkpoint([Checkpoint(job_id, Progress(), dead=letters)])
    return found


def lettered(daemon: Miniature) -> list[tuple[str, int]]:
    """Whose letters are there, by job and line."""
    return [(letter.job_id, letter.line) for letter in daemon.ledger.dead_letters()]


def test_old_dead_letters_go_unless_they_are_being_redriven(daemon: Miniature) -> None:
    """A letter that an active job runs again stays until that is over."""
    ids = add_letters(daemon, {"old": NOW - 10 * DAY, "new": NOW})
    again = job_record(JOB_ID[:-1] + "9", "again", redrive_of=ids["old"])
    daemon.ledger.accept(again, [], [2])
    assert keep(daemon, NOW, dead_letter_days=5) == 1
    assert lettered(daemon) == [(ids["old"], 2), (ids["new"], 1), (ids["new"], 2)]


def test_letters_of_a_job_that_vanished_go_too(daemon: Miniature) -> None:
    """Without a record a job's age is that of its id, so its letters are removed too."""
    old, new = (str(ULID.from_timestamp(at)) for at in (NOW - 10 * DAY, NOW))
    for job_id in (old, new):
        letter = dead_letter(1, job_id, last_at=NOW)
        daemon.ledger.checkpoint([Checkpoint(job_id, Progress(), dead=[letter])])
        daemon.ledger.forget(job_id)
    assert keep(daemon, NOW, dead_letter_days=5) == 1
    assert lettered(daemon) == [(new, 1)]


def test_letters_above_the_bytes_allowed_go(daemon: Miniature) -> None:
    """The letters of the job that ended first make room for the others."""
    ids = add_letters(daemon, {"b": NOW - 1, "a": NOW - 2, "c": NOW}, request="x" * 1000)
    keep(daemon, NOW, dead_letter_max_bytes=6000)
    assert lettered(daemon) == [(ids["b"], 1), (ids["b"], 2), (ids["c"], 1), (ids["c"], 2)]


def test_a_record_stays_as_long_as_anything_of_its_job_does(daemon: Miniature) -> None:
    """A job is forgotten after dedup_days, and not before its results and letters are gone."""
    finish(daemon, "shown", NOW - 10 * DAY)
    finish(daemon, "lettered", NOW - 10 * DAY)
    finish(daemon, "gone", NOW - 10 * DAY)
    finish(daemon, "recent", NOW - 1 * DAY)
    for name in "lettered", "gone", "recent":
        daemon.spool.remove_published(name)
    kept = next(r for r in daemon.ledger.jobs() if r.name == "lettered")
    letter = dead_letter(1, kept.id, last_at=NOW)
    daemon.ledger.checkpoint([Checkpoint(kept.id, Progress(), dead=[letter])])
    assert keep(daemon, NOW) == 1
    assert {r.name for r in daemon.ledger.jobs()} == {"shown", "lettered", "recent"}


def test_a_sender_that_collects_meanwhile_is_no_error(
    daemon: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was fetched between the look and the removal is only gone."""
    finish(daemon, "old", NOW - 10 * DAY)
    folders = list(daemon.spool.published_folders())
    daemon.spool.remove_published("old")
    monkeypatch.setattr(daemon.spool, "published_folders", lambda: iter(folders))
    keep(daemon, NOW, outbox_days=5)
    assert names(daemon.spool.outbox) == set()


def test_what_cannot_be_removed_stays_whole_and_the_rest_goes(
    daemon: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file that may not be moved keeps its folder, or its refusal, until it may."""
    old, rename = NOW - 10 * DAY, durable.rename_noreplace
    for name in ("a", "b"):
        finish(daemon, name, old)
        (daemon.spool.inbox / f"bad-{name}.jsonl").write_bytes(b"nope\n")
        daemon.take_drops()
        os.utime(daemon.spool.rejected / f"bad-{name}.reason.json", (old, old))
    folder = daemon.spool.outbox / "a"
    kept = [folder / "output.jsonl", daemon.spool.rejected / "bad-a.reason.json"]
    fixed = {path.stat().st_ino for path in kept}

    def fail(source: Path, target: Path) -> None:
        if source.lstat().st_ino in fixed:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        rename(source, target)

    monkeypatch.setattr(durable, "rename_noreplace", fail)
    for gone in (3, 0):  # with the record of the job that is gone
        assert keep(daemon, NOW, outbox_days=5, rejected_days=5) == gone
        assert names(daemon.spool.outbox) == {"a", "bad-a", "bad-b"}
        assert names(folder) == {"output.jsonl", "status.json"}
        assert names(daemon.spool.rejected) == {"bad-a.jsonl", "bad-a.reason.json"}
        assert names(daemon.spool.claimed) == set()
        assert len(daemon.spool.troubles.words()) == len(kept)
    fixed.clear()
    assert keep(daemon, NOW, outbox_days=5, rejected_days=5) == 3
    assert daemon.spool.troubles.words() == ()


def test_what_a_crash_left_of_a_removal_goes(daemon: Miniature) -> None:
    """It was chosen to go, and is out of sight already."""
    (daemon.spool.claimed / "retained.0" / "0").mkdir(parents=True)
    keep(daemon, NOW)
    assert names(daemon.spool.claimed) == set()
