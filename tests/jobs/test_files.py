"""The journal: finished lines are appended, synced, and cut to what was committed."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.jobs.files import InputFile, ResultsFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of results.part."""
    return tmp_path / "results.part"


def flush(journal: ResultsFile) -> int:
    """Write all that is pending; return the length that a commit would record."""
    lines, length = journal.take()
    journal.flush(lines, length)
    return length


def test_lines_are_written_at_the_places_returned(path: Path) -> None:
    """A line is at the offset and of the length returned for it, once it is flushed."""
    with ResultsFile(path, 0) as journal:
        places = [journal.append(line) for line in (b"one\n", b"three\n")]
        assert places == [(0, 4), (4, 6)]
        assert (journal.pending_bytes, path.stat().st_size) == (10, 0)
        assert flush(journal) == 10
        assert (journal.pending_bytes, journal.durable) == (0, 10)
        assert path.read_bytes() == b"one\nthree\n"


def test_what_comes_during_a_flush_waits_for_the_next(path: Path) -> None:
    """Lines that arrive between taking and writing are neither lost nor written early."""
    with ResultsFile(path, 0) as journal:
        journal.append(b"one\n")
        lines, length = journal.take()
        assert journal.append(b"two\n") == (4, 4)
        journal.flush(lines, length)
        assert path.read_bytes() == b"one\n"
        assert flush(journal) == 8
        assert path.read_bytes() == b"one\ntwo\n"


def test_opening_cuts_off_what_was_never_committed(path: Path) -> None:
    """A tail that a crash left, whole lines included, does not count."""
    path.write_bytes(b"one\ntwo\ncut")
    with ResultsFile(path, 4) as journal:
        assert path.read_bytes() == b"one\n"
        assert journal.append(b"2\n") == (4, 2)
        flush(journal)
    assert path.read_bytes() == b"one\n2\n"


def test_a_file_that_is_too_short_is_damage(path: Path) -> None:
    """Missing committed results are an error, and the rest of the file stays unchanged."""
    path.write_bytes(b"one\n")
    with pytest.raises(DamagedJobError) as caught:
        ResultsFile(path, 5)
    assert caught.value.code == "results_short"
    assert path.read_bytes() == b"one\n"


def test_a_missing_file_is_damage_once_anything_was_committed(path: Path) -> None:
    """A missing journal is not replaced by an empty one."""
    with pytest.raises(DamagedJobError):
        ResultsFile(path, 1)


def test_a_failed_opening_leaves_no_descriptor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fails while the file is being opened, its descriptor is closed."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    path.write_bytes(b"one\ntwo\n")
    descriptors = Path("/proc/self/fd")
    opened = len(list(descriptors.iterdir()))
    monkeypatch.setattr(os, "ftruncate", fail)
    monkeypatch.setattr(os, "dup", fail)
    for open_it in (lambda: ResultsFile(path, 4), lambda: InputFile(path, 2)):
        with pytest.raises(DamagedJobError, match="broken"):
            open_it()
    assert len(list(descriptors.iterdir())) == opened


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    """The journal writes into its own file only."""
    (tmp_path / "other").write_bytes(b"keep")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(DamagedJobError, match="symbolic"):
        ResultsFile(path, 0)
    assert (tmp_path / "other").read_bytes() == b"keep"


def test_flushing_nothing_touches_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of admissions alone costs no write to the journal."""

    def never(_: int) -> None:
        pytest.fail("there is nothing to make last")

    with ResultsFile(path, 0) as journal:
        monkeypatch.setattr(os, "fdatasync", never)
        assert flush(journal) == 0


def test_a_write_that_fails_makes_nothing_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error the durable length is still that of the last flush."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ResultsFile(path, 0) as journal:
        journal.append(b"one\n")
        flush(journal)
        journal.append(b"two\n")
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            flush(journal)
        assert journal.durable == 4


def test_closing_twice_is_fine(path: Path) -> None:
    """Closing a journal that is closed is no error."""
    journal = ResultsFile(path, 0)
    journal.close()
    journal.close()


STEPS = st.lists(
    st.one_of(st.binary(max_size=20).map(lambda b: b + b"\n"), st.sampled_from(["flush", "crash"])),
    max_size=30,
)


@given(STEPS)
def test_after_any_crash_the_file_holds_what_was_committed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | str]
) -> None:
    """Appends, flushes and crashes in any order leave exactly the flushed lines, in order."""
    path = tmp_path_factory.mktemp("journal") / "results.part"
    journal, committed, pending = ResultsFile(path, 0), b"", b""
    for step in steps:
        if isinstance(step, bytes):
            assert journal.append(step) == (len(committed + pending), len(step))
            pending += step
        elif step == "flush":
            assert flush(journal) == len(committed + pending)
            committed, pending = committed + pending, b""
        else:
            lines, _ = journal.take()
            journal.close()
            with path.open("ab") as file:  # what had reached the file without a commit
                file.write(b"".join(lines)[:7])
            journal, pending = ResultsFile(path, len(committed)), b""
    flush(journal)
    journal.close()
    assert path.read_bytes() == committed + pending
