"""What a hostile or careless sender can do to inbox/ itself: nothing of it ends the daemon."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from builders import config, request
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.health_documents import WaitingDrop
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import loop
from inbox_daemon.intake.control import Command, Controller
from inbox_daemon.intake.loop import Intake
from inbox_daemon.spool.entries import Signature, identity_of
from miniature import Miniature
from spool_files import names

GOOD = request("a") + b"\n" + request("b") + b"\n"
OTHER = request("c") + b"\n"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this to a file")


class Orders:
    """Notes orders instead of carrying them out."""

    def __init__(self) -> None:
        """Begin with none."""
        self.given: list[Command] = []

    async def obey(self, command: Command, note: object) -> Fault | None:
        """Note an order."""
        self.given.append(command)
        return command.fault


class Gatehouse(Miniature):
    """The intake of a daemon, whose scans a test makes by hand."""

    def __init__(self, root: Path, **sections: dict[str, Any]) -> None:
        """Start with a spool whose files settle at their second sight."""
        sections["intake"] = {"settle_s": 1e-6} | sections.get("intake", {})
        super().__init__(root, config(**sections))
        self.orders = Orders()
        controller = cast("Controller", self.orders)
        self.intake = Intake(
            self.config, self.spool, self.queue, self.admission, controller, lambda: None
        )

    async def turn(self, times: int = 2) -> dict[str, str]:
        """Scan so often; return what waits, with the reason."""
        waiting: list[WaitingDrop] = []
        for _ in range(times):
            self.intake.problem = None
            waiting = await self.intake._answer_all(await self.intake._scan_lanes())
        return {drop.name: drop.why for drop in waiting}

    def put(self, content: bytes = GOOD, name: str = "job.jsonl") -> Path:
        """Put a file into inbox/."""
        path = self.spool.inbox / name
        path.write_bytes(content)
        return path

    def jobs(self) -> list[str]:
        """The names of the active jobs."""
        return [entry.record.name for entry in self.queue.entries.values()]

    def reasons(self) -> dict[str, str]:
        """What was refused, with the code."""
        found = [
            orjson.loads(path.read_bytes()) for path in self.spool.rejected.glob("*.reason.json")
        ]
        return {reason["name"]: reason["code"] for reason in found}


@pytest.fixture
def gatehouse(tmp_path: Path) -> Iterator[Gatehouse]:
    """An intake with the default configuration."""
    made = Gatehouse(tmp_path / "spool")
    yield made
    made.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Gatehouse]:
    """An intake that refuses at once what stays incomplete."""
    made = Gatehouse(tmp_path / "spool", intake={"incomplete_s": 1e-6})
    yield made
    made.close()


def marker(content: bytes) -> bytes:
    """The sender's word on a file."""
    return orjson.dumps({"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})


# -- links ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["x" * 300, "a/" * 2000 + "a", "job.jsonl", "/proc/1/root/x"])
async def test_a_sidecar_of_a_link_that_leads_nowhere_is_harmless(
    gatehouse: Gatehouse, target: str
) -> None:
    """Where the link NAME.jsonl leads is not asked, however long or circular its target is."""
    (gatehouse.spool.inbox / "job.jsonl").symlink_to(target)
    gatehouse.put(b"{}", "job.jsonl.ready")
    assert "symlink" in (await gatehouse.turn())["job.jsonl"]


@pytest.mark.parametrize("lane", ["high", "low"])
async def test_a_link_in_the_place_of_a_lane_is_not_followed(
    gatehouse: Gatehouse, tmp_path: Path, lane: str
) -> None:
    """A sender that plants a link there does not have our folders emptied; the lane comes back."""
    gatehouse.put(name="first.jsonl")
    await gatehouse.turn()
    queued = names(gatehouse.spool.queued)
    gatehouse.spool.inbox.joinpath(lane).rmdir()
    gatehouse.spool.inbox.joinpath(lane).symlink_to(gatehouse.spool.queued)
    await gatehouse.turn(3)
    assert names(gatehouse.spool.queued) == queued
    assert names(gatehouse.spool.rejected) == set()
    assert gatehouse.spool.quarantined() == [lane]
    gatehouse.spool.check()
    (gatehouse.spool.inbox / lane / "second.jsonl").write_bytes(OTHER)
    await gatehouse.turn()
    assert gatehouse.jobs() == ["first", "second"]


@pytest.mark.parametrize("occupant", ["file", "dangling", "fifo"])
def test_a_start_mends_a_lane_that_is_no_folder(gatehouse: Gatehouse, occupant: str) -> None:
    """What a sender put in its place is set aside, so that a restart is not refused."""
    lane = gatehouse.spool.inbox / "high"
    lane.rmdir()
    if occupant == "file":
        lane.write_bytes(GOOD)
    elif occupant == "fifo":
        os.mkfifo(lane)
    else:
        lane.symlink_to("nowhere")
    gatehouse.spool.create()
    gatehouse.spool.check()
    assert gatehouse.spool.quarantined() == ["high"]


async def test_a_lane_that_becomes_a_link_after_the_scan_is_not_emptied(
    gatehouse: Gatehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drop is taken from the folder that was scanned or from none."""
    lane, other = gatehouse.spool.inbox / "high", gatehouse.spool.queued
    (lane / "job.jsonl").write_bytes(GOOD)
    claim = gatehouse.spool.claim

    def swap_and_claim(fd: int, job_id: str, limit: int) -> tuple[str, int]:
        lane.rename(gatehouse.spool.root / "away")
        lane.symlink_to(other)
        os.link(gatehouse.spool.root / "away" / "job.jsonl", other / "job.jsonl")
        (gatehouse.spool.root / "away" / "job.jsonl").unlink()
        return claim(fd, job_id, limit)

    monkeypatch.setattr(gatehouse.spool, "claim", swap_and_claim)
    await gatehouse.turn()
    assert (other / "job.jsonl").exists()


# -- what cannot be taken away --------------------------------------------------------


def immutable(path: Path, *, on: bool) -> None:
    """Forbid, or allow again, to change or rename a file."""
    told = subprocess.run(
        ["chattr", "+i" if on else "-i", path], check=False, capture_output=True, timeout=60
    )
    if told.returncode:
        pytest.skip("the filesystem knows no immutable files")


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    ("name", "content"),
    [("job.jsonl", GOOD), ("job.jsonl", b"nope\n"), ("job.jsonl", b""), ("bad name", GOOD)],
    ids=["good", "bad", "empty", "bad-name"],
)
async def test_an_immutable_file_is_answered_once_and_named(
    impatient: Gatehouse, name: str, content: bytes
) -> None:
    """A file that cannot be moved runs at most once, fills nothing, and ends no daemon."""
    path = impatient.put(content, name)
    immutable(path, on=True)
    try:
        waiting = await impatient.turn(6)
    finally:
        immutable(path, on=False)
    assert "cannot be taken away" in waiting[name]
    assert names(impatient.spool.claimed) == names(impatient.spool.rejected) == set()
    assert len(impatient.queue.entries) == (content == GOOD and name == "job.jsonl")
    assert await impatient.turn(3) == {}
    assert names(impatient.spool.inbox) == {"high", "low"}
    assert len(impatient.queue.entries) == (content == GOOD and name == "job.jsonl")


@pytest.mark.root
@needs_root
async def test_an_immutable_order_is_obeyed_once(gatehouse: Gatehouse) -> None:
    """An order that cannot be removed is not given again with each scan."""
    path = gatehouse.put(b"", "ALL.cancel")
    immutable(path, on=True)
    try:
        waiting = await gatehouse.turn(5)
    finally:
        immutable(path, on=False)
    assert "cannot be taken away" in waiting["ALL.cancel"]
    assert len(gatehouse.orders.given) == 1


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("lane", ["", "high"])
async def test_nothing_is_taken_from_what_was_mounted_over_a_lane(
    gatehouse: Gatehouse, lane: str
) -> None:
    """Files there could not be taken away, so they stay, and the status says why."""
    folder = gatehouse.spool.inbox / lane
    (folder / "below.jsonl").write_bytes(GOOD)
    subprocess.run(["mount", "-t", "tmpfs", "inbox-daemon-test", folder], check=True)
    try:
        (folder / "above.jsonl").write_bytes(OTHER)
        await gatehouse.turn(3)
        assert f"{folder}" in str(gatehouse.intake.problem)
        assert "another filesystem" in str(gatehouse.intake.problem)
        assert gatehouse.jobs() == []
        assert (folder / "above.jsonl").exists()
    finally:
        subprocess.run(["umount", folder], check=True)
    await gatehouse.turn()
    assert (gatehouse.intake.problem, gatehouse.jobs()) == (None, ["below"])


async def test_a_folder_in_the_place_of_a_sidecar_stays(impatient: Gatehouse) -> None:
    """What lies in it is not part of the refused file, and stays."""
    folder = impatient.spool.inbox / "job.jsonl.ready"
    folder.mkdir()
    (folder / "precious").touch()
    impatient.put()
    assert await impatient.turn(3) == {"job.jsonl.ready": "it waits for its job's file"}
    assert impatient.reasons() == {"job": "bad_marker"}
    assert (folder / "precious").exists()


# -- what cannot be read --------------------------------------------------------------


async def test_a_file_that_the_disk_does_not_give_back_waits(
    gatehouse: Gatehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error in a sender's file is reported, and costs neither file nor daemon."""

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = gatehouse.put(GOOD[:-1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert "cannot be read" in (await gatehouse.turn())["job.jsonl"]
    assert path.exists()


async def test_what_is_open_for_writing_is_never_refused_as_abandoned(impatient: Gatehouse) -> None:
    """An upload that stalls under a name of its own is not torn from its writer."""
    for name in ("job.jsonl.part", "cut.jsonl", "marked.jsonl"):
        impatient.put(GOOD[:-5], name)
    impatient.put(marker(GOOD), "marked.jsonl.ready")
    paths = [impatient.spool.inbox / n for n in ("job.jsonl.part", "cut.jsonl", "marked.jsonl")]
    writers = [path.open("ab") for path in paths]
    waiting = await impatient.turn(4)
    assert {path.name: "open for writing" in waiting[path.name] for path in paths} == dict.fromkeys(
        (path.name for path in paths), True
    )
    for writer in writers:
        writer.close()
    assert await impatient.turn(4) == {}
    assert len(impatient.reasons()) == 3


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
async def test_an_order_that_is_no_file_is_reported(gatehouse: Gatehouse, kind: str) -> None:
    """NAME.cancel that is a folder, a link or a FIFO is no order, and the status says why."""
    path = gatehouse.spool.inbox / "ALL.cancel"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/null")
    else:
        os.mkfifo(path)
    assert "not a regular file" in (await gatehouse.turn(3))["ALL.cancel"]
    assert gatehouse.orders.given == []


# -- encodings ------------------------------------------------------------------------

FORMATS = {
    "gzip": bytes.fromhex("1f8b0800"),
    "zstd": bytes.fromhex("28b52ffd"),
    "xz": bytes.fromhex("fd377a585a00"),
    "bzip2": b"BZh9",
    "lz4": bytes.fromhex("04224d18"),
    "zip": b"PK\3\4",
    "UTF-16": "\ufeff{}\n".encode("utf-16-le"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("marked", [False, True])
async def test_encoded_input_is_refused_with_its_format_named(
    gatehouse: Gatehouse,
    form: str,
    marked: bool,  # noqa: FBT001 - both ways
) -> None:
    """The sender learns at once that the file must be sent as plain UTF-8."""
    content = FORMATS[form] + os.urandom(50)
    gatehouse.put(content)
    if marked:
        gatehouse.put(marker(content), "job.jsonl.ready")
    assert await gatehouse.turn() == {}
    (reason,) = [
        orjson.loads(path.read_bytes()) for path in gatehouse.spool.rejected.glob("*.reason.json")
    ]
    assert reason["code"] == "encoded"
    assert form in reason["message"]


async def test_the_name_of_a_compressed_file_is_answered_in_words(gatehouse: Gatehouse) -> None:
    """The refusal of NAME.jsonl.gz asks for an uncompressed file, not merely for another name."""
    for name in ("job.jsonl.gz", "job.zst"):
        gatehouse.put(b"x", name)
    assert all("uncompressed" in why for why in (await gatehouse.turn()).values())


# -- corrections ----------------------------------------------------------------------


async def test_a_corrected_marker_is_looked_at_again(gatehouse: Gatehouse) -> None:
    """The file did not change, but what its sender says of it did."""
    gatehouse.put()
    gatehouse.put(marker(GOOD.replace(b"a", b"z")), "job.jsonl.ready")
    assert "sha256" in (await gatehouse.turn(3))["job.jsonl"]
    gatehouse.put(marker(GOOD), "job.jsonl.ready")
    assert await gatehouse.turn(1) == {}
    assert gatehouse.jobs() == ["job"]


async def test_a_marker_that_was_withdrawn_holds_nothing_back(gatehouse: Gatehouse) -> None:
    """Without a marker the file is like any other."""
    gatehouse.put()
    gatehouse.put(marker(GOOD.replace(b"a", b"z")), "job.jsonl.ready")
    await gatehouse.turn(3)
    (gatehouse.spool.inbox / "job.jsonl.ready").unlink()
    assert await gatehouse.turn(1) == {}
    assert gatehouse.jobs() == ["job"]


async def test_a_mismatch_is_not_read_again_and_is_forgotten_in_time(
    gatehouse: Gatehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look is enough while nothing changes, and a file that is gone is forgotten."""
    path = gatehouse.put()
    gatehouse.put(marker(GOOD.replace(b"a", b"z")), "job.jsonl.ready")
    claims: list[str] = []
    claim = gatehouse.spool.claim

    def note_and_claim(fd: int, job_id: str, limit: int) -> tuple[str, int]:
        claims.append(job_id)
        return claim(fd, job_id, limit)

    monkeypatch.setattr(gatehouse.spool, "claim", note_and_claim)
    await gatehouse.turn(4)
    assert len(claims) == 1
    path.unlink()
    await gatehouse.turn(1)
    assert not gatehouse.admission._mismatched


@pytest.mark.parametrize("same", [True, False])
def test_a_drop_that_was_sent_again_during_a_crash_leaves_no_old_copy(
    gatehouse: Gatehouse,
    same: bool,  # noqa: FBT001 - both ways
) -> None:
    """The copy that was being taken away goes where it says no more than the new one does."""
    path = gatehouse.put()
    with path.open("rb") as opened:
        signature = Signature.of(os.fstat(opened.fileno()))
    assert gatehouse.spool.take_out("job.jsonl", Priority.NORMAL, signature, "0" * 26)
    again = gatehouse.put(GOOD if same else OTHER)
    gatehouse.spool.finish_drops(set())
    assert again.read_bytes() == (GOOD if same else OTHER)
    assert gatehouse.spool.quarantined() == ([] if same else ["job.jsonl"])
    assert names(gatehouse.spool.claimed) == set()


# -- floods ---------------------------------------------------------------------------


async def test_a_flood_of_other_files_delays_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are none and hidden files are kept few, and the jobs among them are taken."""
    monkeypatch.setattr(loop, "MAX_SEEN", 3)
    monkeypatch.setattr(loop, "MAX_WAITING", 4)
    flooded = Gatehouse(tmp_path / "spool")
    for number in range(20):
        flooded.put(b"", f"bad name {number}")
        flooded.put(b"", f".hidden {number}")
        flooded.put(marker(GOOD), f"job{number % 3}.jsonl.ready")
    for number in range(3):
        flooded.put(GOOD, f"job{number}.jsonl")
    for _ in range(4):
        assert len(await flooded.turn()) <= 4
        assert len(flooded.intake._settling[Priority.NORMAL]) <= 3 + 3 + 4
    assert sorted(flooded.jobs()) == ["job0", "job1", "job2"]
    flooded.close()


# -- sizes ----------------------------------------------------------------------------


async def test_a_sparse_file_counts_as_what_it_takes(gatehouse: Gatehouse) -> None:
    """A file of 50 GB that holds nothing is refused, and pushes no other refusal out."""
    gatehouse.put(b"", "old.jsonl")
    path = gatehouse.put(b"", "sparse.jsonl")
    os.truncate(path, 50_000_000_000)
    await gatehouse.turn()
    assert gatehouse.reasons() == {"old": "empty", "sparse": "too_large"}
    assert sum(size for _, _, size in gatehouse.spool.rejections()) < 1 << 20


def test_a_lane_is_opened_as_the_folder_that_it_is(gatehouse: Gatehouse) -> None:
    """The descriptor is of the lane itself."""
    for lane in Priority:
        fd = gatehouse.spool.open_lane(lane)
        found = gatehouse.spool.lane(lane).stat()
        assert identity_of(fd) == (found.st_dev, found.st_ino)
        os.close(fd)
