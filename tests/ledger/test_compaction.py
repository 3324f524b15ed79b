"""Compaction: the ledger's file is exchanged while no other process has it open."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inbox_daemon.contract.errors import LedgerError
from inbox_daemon.ledger import Ledger, compaction
from inbox_daemon.spool import durable

ROWS = 20
READ = """
import sys
from pathlib import Path
from inbox_daemon.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), readonly=True)
"""
HOLD_OPEN = f"{READ}\nprint('open', flush=True)\nsys.stdin.read()"
HOLD_TRANSACTION = (
    f"{READ}\nwith ledger._read():\n    print('open', flush=True)\n    sys.stdin.read()"
)
COUNT = f"{READ}\nprint(sum(ledger.get_state(f'k{{n}}') is not None for n in range({ROWS})))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger with ROWS rows, each of a transaction of its own, and free pages."""
    place = tmp_path / "ledger"
    place.mkdir()
    fill(place, ROWS)
    return place


def fill(place: Path, rows: int) -> None:
    """Make a ledger of so many transactions, with a row from each."""
    ledger = Ledger(place)
    for number in range(rows):
        ledger.put_state(f"k{number}", b"x" * 10_000)
    ledger.close()


def rows(place: Path) -> int:
    """Open the ledger as the daemon does; count the rows it has."""
    ledger = Ledger(place)
    found = sum(ledger.get_state(f"k{number}") is not None for number in range(ROWS))
    ledger.close()
    return found


@contextmanager
def reader(place: Path, code: str) -> Iterator[int]:
    """Another process that has the ledger open; gives its process id."""
    words = [sys.executable, "-c", code, str(place)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("code", [HOLD_OPEN, HOLD_TRANSACTION])
def test_a_ledger_that_is_being_read_is_left_alone(folder: Path, tmp_path: Path, code: str) -> None:
    """The refusal names the process, nothing changes, and afterwards it can be done."""
    before = (folder / "data.mdb").read_bytes()
    with reader(folder, code) as pid, pytest.raises(LedgerError, match=f"process {pid} reads"):
        compaction.compact(folder, tmp_path / "work")
    assert (folder / "data.mdb").read_bytes() == before
    assert not (tmp_path / "work").exists()
    compaction.compact(folder, tmp_path / "work")
    assert rows(folder) == ROWS


def test_each_reader_is_named(folder: Path, tmp_path: Path) -> None:
    """Of several processes all are named, so that all can be ended."""
    with (
        reader(folder, HOLD_TRANSACTION) as first,
        reader(folder, HOLD_TRANSACTION) as second,
        pytest.raises(LedgerError) as refused,
    ):
        compaction.compact(folder, tmp_path / "work")
    assert f"processes {', '.join(map(str, sorted([first, second])))} read" in refused.value.message


def test_a_process_that_opens_it_meanwhile_reads_the_new_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes during the exchange waits for its end, and finds all rows."""
    waiting: list[subprocess.Popen[str]] = []
    put_in_place = durable.put_in_place

    def exchange(source: Path, target: Path) -> None:
        words = [sys.executable, "-c", COUNT, str(folder)]
        waiting.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        while not blocked(waiting[0].pid):
            time.sleep(0.01)
        put_in_place(source, target)

    monkeypatch.setattr(durable, "put_in_place", exchange)
    compaction.compact(folder, tmp_path / "work")
    with waiting[0] as process:
        assert process.stdout is not None
        assert process.stdout.read() == f"{ROWS}\n"
    assert rows(folder) == ROWS


def blocked(pid: int) -> bool:
    """Return whether a process waits for a lock of a file."""
    lines = Path("/proc/locks").read_text("ascii").splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_lock_file_that_does_not_fit_the_data_costs_nothing(
    folder: Path, tmp_path: Path, extra: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the data was exchanged beside a reader all the same, the daemon starts with all rows.

    At every second transaction number LMDB would take the new file for an empty one.
    """
    fill(folder, extra)
    with reader(folder, HOLD_OPEN):
        copy = tmp_path / "copy"
        copy.mkdir()
        ledger = Ledger(folder)
        ledger.compact_into(copy)
        ledger.close()
        shutil.copy(copy / "data.mdb", folder / "data.new")
        (folder / "data.new").rename(folder / "data.mdb")
        assert rows(folder) == ROWS
        assert "ledger_lock_stale" in caplog.text
    assert rows(folder) == ROWS
