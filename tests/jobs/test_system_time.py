"""The machine's clocks, and the note of the newest trusted time."""

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from builders import job_record
from inbox_daemon.jobs import system_time
from inbox_daemon.jobs.clock import REBOOT_S, Anchor
from inbox_daemon.jobs.system_time import NOTE, SystemTime, note_anchor, open_clock
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool
from spool_files import names

DAY = 86400.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    return spool


@pytest.fixture
def ledger(spool: Spool) -> Iterator[Ledger]:
    """Its ledger."""
    ledger = Ledger(spool.ledger)
    yield ledger
    ledger.close()


def test_both_clocks_are_the_machines() -> None:
    """Seconds since 1970 and since boot, of one moment, and which boot that is."""
    before = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    source = SystemTime()
    reading = source.read()
    assert all(b <= r for b, r in zip(before, reading, strict=True))
    assert source.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_clocks_that_were_not_read_at_once_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is held up between the two would see a jump."""
    boots = iter([1.0, 100.0, 100.0, 100.1])
    monkeypatch.setattr(system_time, "_since_boot", lambda: next(boots))
    assert SystemTime().read().boot == 100.1


def test_a_machine_without_a_name_for_its_boot_has_a_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /proc does not say which boot this is, the daemon starts all the same."""
    monkeypatch.setattr(system_time, "_BOOT_ID", tmp_path / "none")
    assert SystemTime().boot_id == ""


def test_a_synchronisation_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that systemd-timesyncd touches each time it has asked for the time."""
    path = tmp_path / "synchronized"
    monkeypatch.setattr(system_time, "SYNCHRONISED", path)
    source = SystemTime()
    assert source.synchronised_at() is None
    path.touch()
    assert source.synchronised_at() == path.stat().st_mtime


def test_the_newest_trusted_time_is_found_again(spool: Spool, ledger: Ledger) -> None:
    """A start right after the end of a daemon is in no doubt, and leaves nothing behind."""
    clock = open_clock(spool, ledger, 600.0)
    for _ in range(2):
        anchor = clock.anchor()
        assert anchor is not None
        note_anchor(spool, anchor)
    assert names(spool.claimed) == set()
    again = open_clock(spool, ledger, 600.0)
    assert again.doubt is None
    assert (spool.ledger / NOTE).exists()


def test_a_time_that_differs_from_the_newest_is_in_doubt(spool: Spool, ledger: Ledger) -> None:
    """A hundred days have not passed on the same boot."""
    wall, boot = SystemTime().read()
    note_anchor(spool, Anchor(wall - 100 * DAY, boot, SystemTime().boot_id))
    assert "100 days ahead" in (open_clock(spool, ledger, 600.0).doubt or "")


NOTES = [b"", b"[]", b'{"wall": "x"}', b'{"wall": 1, "boot": null, "boot_id": ""}', b"\xff"]


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_cannot_be_read_is_none(spool: Spool, ledger: Ledger, note: bytes) -> None:
    """A damaged note keeps no daemon from starting."""
    (spool.ledger / NOTE).write_bytes(note)
    assert open_clock(spool, ledger, 600.0).doubt is None


@pytest.mark.parametrize(("ago_s", "doubt"), [(REBOOT_S / 2, False), (100 * DAY, True)])
def test_without_a_note_the_jobs_know_of_a_time(
    spool: Spool,
    ledger: Ledger,
    ago_s: float,
    doubt: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """As after the release that notes none: the newest end or admission counts."""
    at = time.time() - ago_s
    ledger.accept(job_record(created_at=at - DAY, finished_at=at), [])
    assert (open_clock(spool, ledger, 600.0).doubt is not None) is doubt


def test_a_note_that_cannot_be_written_is_left(spool: Spool, ledger: Ledger) -> None:
    """The last one stays, and the work goes on."""
    note_anchor(spool, Anchor(1.0, 2.0, "x"))
    spool.claimed.rmdir()
    note_anchor(spool, Anchor(3.0, 4.0, "x"))
    assert orjson.loads((spool.ledger / NOTE).read_bytes())["wall"] == 1.0
