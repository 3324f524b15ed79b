"""Troubles: an error belongs to the entry that it met, and is logged once."""

import errno
import os
from pathlib import Path

import pytest

from inbox_daemon.spool.troubles import OWN_ERRORS, Troubles

GIVE = "give it to the daemon's user, or remove it"


def fail(number: int) -> None:
    """Raise what a system call would."""
    raise OSError(number, os.strerror(number))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file in a folder of a spool."""
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "job").touch()
    return tmp_path / "outbox"


def test_an_error_is_noted_and_the_next_step_taken(folder: Path) -> None:
    """The words name the entry, what could not be done and what to do, by the kind of error."""
    troubles = Troubles(folder.parent)
    with troubles.alone(folder / "job", "removed"):
        fail(errno.EACCES)
    with troubles.alone(folder / "job", "looked at"):
        fail(errno.EIO)
    assert troubles.words() == (
        f"outbox/job cannot be removed: Permission denied; {GIVE}",
        "outbox/job cannot be looked at: Input/output error; look at the disk",
    )
    assert folder / "job" in troubles
    assert set(troubles.below(folder)) == {folder / "job"}


def test_a_step_that_succeeds_ends_its_own_trouble(folder: Path) -> None:
    """Another step's stays."""
    troubles = Troubles(folder.parent)
    for step in ("removed", "looked at"):
        with troubles.alone(folder / "job", step):
            fail(errno.EIO)
    with troubles.alone(folder / "job", "looked at"):
        pass
    (words,) = troubles.words()
    assert "removed" in words


def test_what_is_gone_is_forgotten(folder: Path) -> None:
    """Its owner has removed it."""
    troubles = Troubles(folder.parent)
    with troubles.alone(folder / "job", "removed"):
        fail(errno.EPERM)
    (folder / "job").unlink()
    assert troubles.words() == ()
    assert folder / "job" not in troubles


def test_the_same_trouble_is_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And once more when its reason is another."""
    troubles = Troubles(folder.parent)
    for number in (errno.EIO, errno.EIO, errno.EACCES, errno.EACCES):
        with troubles.alone(folder / "job", "removed"):
            fail(number)
    assert [record.message for record in caplog.records] == ["left_in_place"] * 2


@pytest.mark.parametrize("number", sorted(OWN_ERRORS))
def test_the_process_own_trouble_passes_through(folder: Path, number: int) -> None:
    """Too little memory and too many descriptors are no file's fault."""
    troubles = Troubles(folder.parent)
    with pytest.raises(OSError), troubles.alone(folder / "job", "removed"):
        fail(number)
    assert troubles.words() == ()
