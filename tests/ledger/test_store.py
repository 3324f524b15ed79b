"""The ledger's store: opened, upgraded, grown, and whole after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import orjson
import pytest

from builders import JOB_ID, dead_letter, job_record
from inbox_daemon.contract.errors import LedgerError
from inbox_daemon.contract.records import (
    LEDGER_VERSION,
    Checkpoint,
    Progress,
)
from inbox_daemon.ledger import MARKER, Ledger
from ledger_rows import Open, entry


def code_of(folder: Path, *, readonly: bool = False) -> str:
    """The code of the error that opening ends with."""
    with pytest.raises(LedgerError) as caught:
        Ledger(folder, readonly=readonly)
    return caught.value.code


# -- opening ------------------------------------------------------------------------


def test_a_ledger_is_made_once_and_known_by_its_marker(folder: Path, reopen: Open) -> None:
    """The first opening makes data and marker, the next finds both."""
    reopen().put_state("x", b"1")
    assert (folder / MARKER).exists()
    assert reopen().get_state("x") == b"1"


@pytest.mark.parametrize("harm", ["removed", "emptied"])
@pytest.mark.parametrize("readonly", [False, True])
def test_lost_data_is_noticed(folder: Path, reopen: Open, harm: str, readonly: bool) -> None:  # noqa: FBT001 - either way
    """A ledger whose data is gone is not mistaken for a new one."""
    reopen().close()
    data = folder / "data.mdb"
    data.unlink() if harm == "removed" else data.write_bytes(b"")
    assert code_of(folder, readonly=readonly) == "ledger_lost"
    assert not data.exists() or data.stat().st_size == 0


def test_data_that_others_replaced_is_noticed(folder: Path, reopen: Open) -> None:
    """An environment that is empty beside a marker is lost data as well."""
    reopen().close()
    (folder / "data.mdb").unlink()
    env = lmdb.open(str(folder), max_dbs=20)
    env.close()
    assert code_of(folder) == "ledger_lost"


@pytest.mark.parametrize("content", [b"garbage" * 2000, b"\0" * 16384])
def test_data_that_is_no_database_is_refused(folder: Path, reopen: Open, content: bytes) -> None:
    """Garbage in place of the data is an error in words."""
    reopen().close()
    (folder / "data.mdb").write_bytes(content)
    assert code_of(folder) in {"ledger_unreadable", "ledger_lost"}
    assert (folder / "data.mdb").read_bytes()[:7] == content[:7]


def test_a_ledger_without_energy_is_brought_up_to_date(folder: Path, reopen: Open) -> None:
    """A ledger of version 1 is upgraded by a writer only; what it lacks is not known."""
    ledger = reopen()
    ledger.accept(job_record(), [])
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(completed=3, output_tokens=9))])
    ledger.close()
    with lmdb.open(str(folder), max_dbs=20) as env, env.begin(write=True) as txn:
        for table in (b"jobs", b"progress"):
            rows = env.open_db(table, txn)
            row = orjson.loads(txn.get(JOB_ID.encode(), b"", db=rows))
            del row["energy_j"]
            txn.put(JOB_ID.encode(), orjson.dumps(row), db=rows)
        txn.put(b"version", b"1", db=env.open_db(b"meta", txn))
    assert code_of(folder, readonly=True) == "ledger_version"
    ledger = reopen()
    assert ledger.jobs() == [job_record()]
    assert ledger.progress(JOB_ID) == Progress(completed=3, output_tokens=9)
    ledger.close()
    Ledger(folder, readonly=True).close()


@pytest.mark.parametrize("marker", [True, False])
def test_a_newer_ledger_is_left_to_its_release(folder: Path, reopen: Open, marker: bool) -> None:  # noqa: FBT001 - either way
    """Another version is refused and not overwritten, with or without its marker."""
    ledger = reopen()
    ledger.put_state("version", b"%d" % (LEDGER_VERSION + 1))
    ledger.close()
    if not marker:
        (folder / MARKER).unlink()
    assert code_of(folder) == "ledger_version"


def test_a_reader_makes_nothing(folder: Path) -> None:
    """Reading a ledger that was never made is refused and leaves the folder as it was."""
    assert code_of(folder, readonly=True) == "ledger_missing"
    assert list(folder.iterdir()) == []


def test_an_interrupted_making_is_taken_up(folder: Path, reopen: Open) -> None:
    """Data without its marker, as a crash in the first start leaves it, is a new ledger."""
    reopen().close()
    (folder / MARKER).unlink()
    reopen().put_state("x", b"1")
    assert reopen().get_state("x") == b"1"


# -- size ---------------------------------------------------------------------------


def test_the_map_grows_for_one_large_commit(reopen: Open) -> None:
    """Dead letters of more bytes than the first map has room for are committed at once."""
    big = "x" * (1 << 20)
    letters = [dead_letter(line, request=big) for line in range(1, 321)]
    reopen().checkpoint([Checkpoint(JOB_ID, Progress(failed=320), dead=letters)])
    ledger = reopen()
    assert ledger.dead_count() == 320
    ledger.purge([(JOB_ID, line) for line in range(1, 321)])
    assert ledger.dead_count() == 0


def test_room_that_was_freed_is_used_again(folder: Path, reopen: Open) -> None:
    """A ledger that is filled and emptied over and over does not grow without end."""
    ledger = reopen()
    sizes = []
    for _ in range(6):
        letters = [dead_letter(line, request="x" * 100_000) for line in range(1, 31)]
        ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=letters)])
        ledger.purge([(JOB_ID, line) for line in range(1, 31)])
        sizes.append((folder / "data.mdb").stat().st_size)
    assert sizes[-1] <= 3 * sizes[0]


# -- processes ----------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from inbox_daemon.ledger import Ledger
from inbox_daemon.contract.records import Checkpoint, OutcomeAt, Progress
from inbox_daemon.contract.states import Outcome
ledger = Ledger(Path(sys.argv[1]))
for line in range(1, 100_000):
    entry = OutcomeAt(line * 10, 10, Outcome.RESULT, retryable=False)
    progress = Progress(completed=line, committed=line * 10 + 10)
    ledger.checkpoint([Checkpoint(sys.argv[2], progress, [(line, entry)])])
    print(line, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_had_returned(folder: Path, reopen: Open) -> None:
    """After SIGKILL in the middle of commits the next daemon finds all that was acknowledged."""
    reopen().close()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), JOB_ID], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged == 100:
                os.kill(writer.pid, signal.SIGKILL)
                break
        rest = writer.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else acknowledged
    ledger = reopen()
    found = list(ledger.all_entries(JOB_ID))
    assert len(found) >= acknowledged
    assert found == [entry(line) for line in range(1, len(found) + 1)]
    assert ledger.progress(JOB_ID).completed == len(found)


READER = """
import sys
from pathlib import Path
from inbox_daemon.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), readonly=True)
print([job.name for job in ledger.jobs()], ledger.progress(sys.argv[2]).completed, flush=True)
ledger.close()
"""


def read_elsewhere(folder: Path) -> str:
    """What another process reads in the ledger."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder), JOB_ID],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_reader_beside_a_writer_sees_what_is_committed(folder: Path, reopen: Open) -> None:
    """Another process reads the newest commit while this one holds the ledger open."""
    ledger = reopen()
    ledger.accept(job_record(), [])
    assert read_elsewhere(folder) == "['job'] 0"
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(completed=4))])
    assert read_elsewhere(folder) == "['job'] 4"
    ledger.put_state("after", b"1")
    assert ledger.get_state("after") == b"1"


def test_a_failed_write_is_an_error_that_ends_the_daemon(
    reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What LMDB cannot write is never taken for written."""
    ledger = reopen()

    def full(*_: object, **__: object) -> None:
        raise lmdb.MapFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_put_raw", full)
        with pytest.raises(LedgerError) as caught:
            ledger.accept(job_record(), [])
    assert caught.value.code == "ledger_write_failed"
    assert ledger.jobs() == []


def test_a_reader_that_was_killed_is_forgotten(folder: Path, reopen: Open) -> None:
    """Its place in the reader table, which keeps old pages, is cleared."""
    ledger = reopen()
    ledger.put_state("x", b"1")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from inbox_daemon.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1]), readonly=True)._read():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ledger.clear_dead_readers() == 1
    assert ledger.clear_dead_readers() == 0
