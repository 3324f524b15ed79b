"""The gate: only a complete, regular, quiet file of a good name is let through."""

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import config, make_spool, request
from inbox_daemon.contract.names import (
    escape,
    is_control_name,
    is_job_name,
    is_sidecar,
    job_of_sidecar,
    safe_stem,
)
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import gate
from inbox_daemon.intake.gate import Pass, Refuse, Wait
from inbox_daemon.spool import Spool
from inbox_daemon.spool.entries import DirEntry, scan

GOOD = request("a") + b"\n"
SHA256 = "0" * 64
NORMAL = Priority.NORMAL


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)


@pytest.fixture
def opened() -> Iterator[list[int]]:
    """Descriptors to be closed after the test."""
    descriptors: list[int] = []
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def entry(spool: Spool, name: str, lane: Priority = NORMAL) -> DirEntry:
    """What a scan sees of a file."""
    return next(item for item in scan(spool.lane(lane)).entries if item.name == name)


def drop(spool: Spool, content: bytes = GOOD, name: str = "a.jsonl") -> DirEntry:
    """Put a file into inbox/ as a scan sees it."""
    (spool.inbox / name).write_bytes(content)
    return entry(spool, name)


def check(
    spool: Spool,
    item: DirEntry,
    *,
    settled: bool = True,
    **limits: int,
) -> Pass | Wait | Refuse:
    """Ask the gate; a descriptor that it opened is closed again."""
    verdict = gate.check_drop(spool, item, NORMAL, config(limits=limits), settled=settled)
    if isinstance(verdict, Pass):
        os.close(verdict.fd)
    return verdict


def why(verdict: Pass | Wait | Refuse | None) -> str:
    """Return the reason of a wait."""
    assert isinstance(verdict, Wait)
    return verdict.why


# -- names and kinds ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overdue"),
    [
        ("a.jsonl", None),
        (".a.jsonl.XyZ123", None),
        ("a.json", "bad_name"),
        ("a b.jsonl", "bad_name"),
        ("a\n.jsonl", "bad_name"),
        ("\x1b[31m.jsonl", "bad_name"),
        (os.fsdecode(b"\xff.jsonl"), "bad_name"),
        ("status.json.jsonl", "bad_name"),
    ],
)
def test_a_name_decides_what_may_become_of_a_file(
    spool: Spool, name: str, overdue: str | None
) -> None:
    """A good name passes, a hidden one waits for its rename, any other is refused in the end."""
    verdict = gate.check_entry(drop(spool, name=name))
    assert (verdict is None) == (name == "a.jsonl")
    fault = verdict.overdue if verdict else None
    assert (fault.code if fault else None) == overdue


def test_only_regular_files_of_one_link_are_opened(spool: Spool, tmp_path: Path) -> None:
    """Folders, links, FIFOs and hard links are left where they are, with the reason."""
    (tmp_path / "secret").write_bytes(GOOD)
    (spool.inbox / "folder.jsonl").mkdir()
    (spool.inbox / "symlink.jsonl").symlink_to(tmp_path / "secret")
    os.mkfifo(spool.inbox / "fifo.jsonl")
    os.link(tmp_path / "secret", spool.inbox / "hard.jsonl")
    words = {item.name: gate.check_entry(item) for item in scan(spool.inbox).entries}
    assert "directory" in why(words["folder.jsonl"])
    assert "symlink" in why(words["symlink.jsonl"])
    assert "regular" in why(words["fifo.jsonl"])
    assert "2 links" in why(words["hard.jsonl"])
    assert all(wait is None or wait.overdue is None for wait in words.values())


@given(st.text(min_size=1, max_size=200))
def test_any_name_is_shown_in_printable_ascii(name: str) -> None:
    """Whatever the name of a file, the status and the log stay readable."""
    shown = escape(name)
    assert shown.isascii()
    assert shown.isprintable()


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=200))
def test_any_name_has_a_stem_that_is_safe(name: str) -> None:
    """Any stem can be the name of a job's folder in outbox/."""
    stem = safe_stem(name)
    assert is_job_name(f"{stem}.jsonl") or is_job_name(f"{stem[:119]}.jsonl")
    assert stem not in {"status.json", "ALL"}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("job.jsonl", "job"),
        ("Job 1.jsonl", "Job_1"),
        ("../../etc/passwd", "etc_passwd"),
        (".hidden.jsonl", "hidden"),
        ("....jsonl", "unnamed"),
        ("status.json.jsonl", "status.json_"),
        ("status.json", "status.json_"),
        ("ALL.jsonl", "ALL_"),
        ("x" * 300, "x" * 120),
    ],
)
def test_a_stem_stays_close_to_the_name(name: str, stem: str) -> None:
    """A sender recognises its file by the stem."""
    assert safe_stem(name) == stem


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("job.cancel", "control"),
        ("ALL.pause", "control"),
        ("a.jsonl.redrive", "control"),
        ("job.purge", "control"),
        ("job.stop", None),
        (".cancel", None),
        ("a b.cancel", None),
        ("job.jsonl.ready", "sidecar"),
        ("job.options.json", "sidecar"),
        (".job.options.json", None),
        ("job.ready", None),
        ("job.jsonl", None),
    ],
)
def test_files_beside_jobs_are_known_by_their_suffixes(name: str, kind: str | None) -> None:
    """Orders and sidecars are distinguished from jobs and from each other."""
    found = "control" if is_control_name(name) else None
    found = "sidecar" if is_sidecar(name) else found
    assert found == kind


def test_a_sidecar_knows_its_job() -> None:
    """The marker and the options belong to NAME.jsonl."""
    assert job_of_sidecar("a.jsonl.ready") == "a.jsonl"
    assert job_of_sidecar("a.options.json") == "a.jsonl"


def test_only_the_lanes_of_inbox_are_lanes() -> None:
    """inbox/high is a lane; inbox/high/high is not."""
    assert gate.is_lane("high", NORMAL)
    assert not gate.is_lane("normal", NORMAL)
    assert not gate.is_lane("high", Priority.HIGH)


# -- completeness -------------------------------------------------------------------


def test_a_quiet_complete_file_passes(spool: Spool, opened: list[int]) -> None:
    """The verdict has an open descriptor of the very file that was checked."""
    item = drop(spool)
    verdict = gate.check_drop(spool, item, NORMAL, config(), settled=True)
    assert isinstance(verdict, Pass)
    opened.append(verdict.fd)
    assert os.read(verdict.fd, 999) == GOOD
    assert (verdict.signature, verdict.sha256) == (item.signature, None)


def test_a_file_that_has_not_settled_waits(spool: Spool) -> None:
    """Without a marker a drop waits until it has settled."""
    assert "quiet" in why(check(spool, drop(spool), settled=False))


@pytest.mark.parametrize("change", ["grown", "replaced", "linked", "gone"])
def test_a_file_that_changed_since_the_scan_waits(spool: Spool, change: str) -> None:
    """A file unlike the one that was scanned waits for the next scan."""
    item, path = drop(spool), spool.inbox / "a.jsonl"
    if change == "grown":
        with path.open("ab") as file:
            file.write(GOOD)
    elif change == "replaced":
        (spool.inbox / "b").write_bytes(GOOD)
        (spool.inbox / "b").rename(path)
    elif change == "linked":
        os.link(path, spool.inbox / "b")
    else:
        path.unlink()
    verdict = check(spool, item)
    assert isinstance(verdict, Wait)
    assert verdict.overdue is None


def test_a_link_that_took_a_files_place_is_not_followed(spool: Spool, tmp_path: Path) -> None:
    """A link that a sender puts in place between scan and opening is not followed."""
    item = drop(spool)
    (tmp_path / "secret").write_bytes(GOOD)
    (spool.inbox / "a.jsonl").unlink()
    (spool.inbox / "a.jsonl").symlink_to(tmp_path / "secret")
    assert "cannot be opened" in why(check(spool, item))


def test_a_file_that_is_open_for_writing_waits(spool: Spool) -> None:
    """A settled file waits while a process has it open for writing."""
    item = drop(spool)
    with (spool.inbox / "a.jsonl").open("ab"):
        assert "open for writing" in why(check(spool, item))
    assert isinstance(check(spool, item), Pass)


def test_an_interrupted_rsync_waits_and_is_refused_in_the_end(spool: Spool) -> None:
    """An mtime of 0 is rsync's mark of a partial file."""
    drop(spool)
    os.utime(spool.inbox / "a.jsonl", ns=(0, 0))
    verdict = check(spool, entry(spool, "a.jsonl"))
    assert "interrupted" in why(verdict)
    assert isinstance(verdict, Wait)
    assert verdict.overdue is not None
    assert verdict.overdue.code == "truncated"


@pytest.mark.parametrize(
    ("content", "complete"),
    [
        (GOOD, True),
        (GOOD + request("b"), True),
        (GOOD + request("b")[:-1], False),
        (GOOD + b"  ", True),
        (GOOD + b"\xff", False),
        (request("b") + b"\r", True),
        (b"x" * 500, True),  # longer than a line may be: the validator says so
        (GOOD + b"x" * 100, False),
    ],
)
def test_a_cut_last_line_waits(
    spool: Spool,
    content: bytes,
    complete: bool,  # noqa: FBT001 - a table
) -> None:
    """A file that ends neither in a newline nor in a readable line is incomplete."""
    verdict = check(spool, drop(spool, content), max_line_bytes=300)
    assert isinstance(verdict, Pass) == complete
    if isinstance(verdict, Wait):
        assert verdict.overdue is not None
        assert verdict.overdue.code == "truncated"


@pytest.mark.parametrize(("content", "code"), [(b"", "empty"), (b"x" * 50 + b"\n", "too_large")])
def test_a_files_size_refuses_it_at_once(spool: Spool, content: bytes, code: str) -> None:
    """A file that can never be taken is refused before any copy."""
    verdict = check(spool, drop(spool, content), max_file_bytes=50)
    assert isinstance(verdict, Refuse)
    assert verdict.fault.code == code


# -- markers ------------------------------------------------------------------------


def mark(spool: Spool, content: bytes) -> None:
    """Put the sender's marker beside the drop."""
    (spool.inbox / "a.jsonl.ready").write_bytes(content)


def test_a_marker_replaces_the_waiting(spool: Spool) -> None:
    """With a marker the file is taken at once, and its checksum decides."""
    mark(spool, orjson.dumps({"bytes": len(GOOD), "sha256": SHA256}))
    verdict = check(spool, drop(spool), settled=False)
    assert isinstance(verdict, Pass)
    assert verdict.sha256 == SHA256


def test_a_marker_of_another_length_holds_the_file_back(spool: Spool) -> None:
    """A file of another length than its marker promises is waited for."""
    mark(spool, orjson.dumps({"bytes": len(GOOD) + 1, "sha256": SHA256}))
    verdict = check(spool, drop(spool))
    assert f"promises {len(GOOD) + 1} bytes" in why(verdict)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"bytes": 1}', b"x" * 100_000])
def test_a_marker_that_says_nothing_holds_the_file_back(spool: Spool, content: bytes) -> None:
    """A marker that is unfinished or invalid is waited for and refused in the end."""
    mark(spool, content)
    verdict = check(spool, drop(spool))
    assert isinstance(verdict, Wait)
    assert verdict.overdue is not None
    assert verdict.overdue.code == "bad_marker"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_a_marker_that_is_no_file_is_not_read(spool: Spool, tmp_path: Path, kind: str) -> None:
    """The gate neither blocks on a FIFO nor follows a link."""
    path = spool.inbox / "a.jsonl.ready"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "m").write_bytes(orjson.dumps({"bytes": len(GOOD), "sha256": SHA256}))
        path.symlink_to(tmp_path / "m")
    else:
        path.mkdir()
    assert isinstance(check(spool, drop(spool)), Wait)


def test_a_marked_file_need_not_end_in_a_newline(spool: Spool) -> None:
    """With length and checksum given, the last line is left to the validator."""
    mark(spool, orjson.dumps({"bytes": 4, "sha256": SHA256}))
    assert isinstance(check(spool, drop(spool, b"nope")), Pass)
