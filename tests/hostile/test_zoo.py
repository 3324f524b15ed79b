"""Everything hostile at once, for one daemon: each entry is answered, or left with the reason."""

import gzip
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from builders import nested
from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import Json, chat, chats

GOOD = b"".join(chats(2))
SECRET = chat("secret", "a line of a file that was never sent")
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
OTHER_USER = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these files")


@dataclass(frozen=True)
class Beast:
    """One entry of inbox/: how it is made, and what must become of it.

    `end` is "runs", "refused CODE", or "stays WORDS" with words of the reason.
    """

    name: str
    make: Callable[[Path], object]
    end: str


def holding(content: bytes) -> Callable[[Path], object]:
    """Make a plain file."""
    return lambda path: path.write_bytes(content)


def leading(target: str) -> Callable[[Path], object]:
    """Make a symbolic link."""
    return lambda path: path.symlink_to(target)


def bind(path: Path) -> None:
    """Make a socket; its own name is too long to be bound directly."""
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def link_twice(path: Path) -> None:
    """Make a file that has another name outside of inbox/."""
    other = path.parent.parent / "other-name"
    other.write_bytes(GOOD)
    path.hardlink_to(other)


def at_time(mtime: int, content: bytes = GOOD) -> Callable[[Path], object]:
    """Make a file of another time, as with rsync's temporary name."""

    def make(path: Path) -> None:
        hidden = path.with_name(f".{path.name}.tmp")
        hidden.write_bytes(content)
        os.utime(hidden, (mtime, mtime))
        hidden.rename(path)

    return make


def sparse(path: Path) -> None:
    """Make a file of 50 GB that takes no room."""
    path.touch()
    os.truncate(path, 50_000_000_000)


def of_another_user(path: Path) -> None:
    """Make another user's file that only its mode keeps from being read."""
    path.write_bytes(GOOD)
    path.chmod(0)
    os.chown(path, OTHER_USER, OTHER_USER)


def device(path: Path) -> None:
    """Make a device that gives zeros without end."""
    os.mknod(path, 0o20666, os.makedev(1, 5))


def long_line(path: Path) -> None:
    """Write one line of 200 MB."""
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.truncate(200_000_000)


WILD_NAMES = [
    "new\nline.jsonl",
    "\x1b[2J\x1b[31mred.jsonl",
    "\x1b]0;title\x07.jsonl",
    os.fsdecode(b"\xff\xfe\xc3.jsonl"),
    "\u202egnp.jsonl",
    "a" * 249 + ".jsonl",
    "я" * 127,
    "-rf.jsonl",
    "--delete.jsonl",
    "a b.jsonl",
    "$(reboot).jsonl",
    "`id`;#.jsonl",
    "{0.__class__}%s%n.jsonl",
    "<script>.jsonl",
    "status.json.jsonl",
    "status.json",
    "ALL.jsonl",
    "job.jsonl~",
    "job.jsonl.part",
    "job.JSONL",
    "job.jsonl.gz",
    "~.jsonl",
    "a\\..\\b.jsonl",
]
CONTENTS = {
    "gzip": (gzip.compress(GOOD), "encoded"),
    "zstd": (bytes.fromhex("28b52ffd") + os.urandom(99), "encoded"),
    "utf16": (GOOD.decode().encode("utf-16"), "encoded"),
    "empty": (b"", "empty"),
    "blank": (b"\n \n\t\n", "empty"),
    "million-blanks": (b"\n" * 1_000_000, "empty"),
    "nul": (b"\0" * 4096 + b"\n", "invalid_json"),
    "escapes": (b'\x1b[2J\x9b{"custom_id": "\x1b]0;x\x07"}\n', "invalid_json"),
    "escaped": (b'{"custom_id": "\\u001b[2J", "url": "\\u202e\\u0007", "body": {}}\n', "invalid_"),
    "deep": (b'{"custom_id": "a", "body": ' + nested(5000) + b"}\n", "too_deep"),
    "binary": (bytes(range(256)) * 40 + b"\n", "invalid_"),
    "bomb": (b"[" + b"[]," * 300_000 + b"[]]\n", "too_many_values"),
    "bad-utf8": (GOOD.replace(b"question", b"\xff\xfe"), "invalid_json"),
    "classic-mac": (GOOD.replace(b"\n", b"\r") + b"\n", "invalid_json"),
    "cut": (GOOD[:-9], "truncated"),
}
ZOO = [
    *(Beast(name, holding(GOOD), "refused bad_name") for name in WILD_NAMES),
    *(Beast(f"{n}.jsonl", holding(c), f"refused {code}") for n, (c, code) in CONTENTS.items()),
    Beast("long-line.jsonl", long_line, "refused line_too_long"),
    Beast("sparse.jsonl", sparse, "refused too_large"),
    Beast("partial.jsonl", at_time(0), "refused truncated"),
    Beast(".hidden.jsonl", holding(GOOD), "stays dot"),
    Beast("..jsonl", holding(GOOD), "stays dot"),
    Beast("...", holding(GOOD), "stays dot"),
    Beast(".job.jsonl.Xy12Zz", holding(GOOD), "stays dot"),
    Beast("to-secret.jsonl", leading("../../secret.jsonl"), "stays symlink"),
    Beast("to-nothing.jsonl", leading("nowhere"), "stays symlink"),
    Beast("to-itself.jsonl", leading("to-itself.jsonl"), "stays symlink"),
    Beast("to-root.jsonl", leading("/"), "stays symlink"),
    Beast("too-long.jsonl", leading("x" * 300), "stays symlink"),
    Beast("too-long.jsonl.ready", holding(b"{}"), ""),
    Beast("to-order.cancel", leading("/dev/null"), "stays symlink"),
    Beast("hard.jsonl", link_twice, "stays 2 links"),
    Beast("pipe.jsonl", os.mkfifo, "stays not a regular file"),
    Beast("pipe.cancel", os.mkfifo, "stays not a regular file"),
    Beast("socket.jsonl", bind, "stays not a regular file"),
    Beast("folder.jsonl", Path.mkdir, "stays directory"),
    Beast("folder.pause", Path.mkdir, "stays directory"),
    Beast("orphan.jsonl.ready", holding(b"{}"), "refused alone"),
    Beast("orphan.options.json", os.mkfifo, "stays its job's file"),
    Beast("unknown.cancel", holding(b""), "refused unknown_job"),
    Beast("odd.cancel", holding(b"\x1b[2J\xff" * 9999), "refused invalid_control"),
    Beast("future.jsonl", at_time(2**33), "runs"),
    Beast("ancient.jsonl", at_time(-(2**31)), "runs"),
    Beast("good.jsonl", holding(GOOD), "runs"),
    Beast("no-newline.jsonl", holding(GOOD[:-1]), "runs"),
    Beast("n" * 114 + ".jsonl", holding(GOOD), "runs"),
]
ROOTS = [
    Beast("device.jsonl", device, "stays not a regular file"),
    Beast("device.jsonl.ready", device, ""),
    Beast("device.cancel", device, "stays not a regular file"),
]


def shown(name: str) -> str:
    """A name as status, reasons and log must show it."""
    return ascii(name)[1:-1]


class Keeper:
    """Looks at the daemon and says what became of a beast."""

    def __init__(self, daemon: DaemonProcess) -> None:
        """Look after the beasts of one daemon."""
        self.daemon = daemon

    def refusals(self) -> dict[str, Json]:
        """All reasons, by the name that was dropped."""
        found = [json.loads(p.read_bytes()) for p in self._rejected().glob("*.reason.json")]
        assert all((self._rejected() / reason["file"]).exists() for reason in found)
        return {reason["name"]: reason for reason in found}

    def _rejected(self) -> Path:
        return self.daemon.spool / "rejected"

    def ended(self, beast: Beast) -> bool:
        """Return whether it has come to its end, seen by what senders and owners can see."""
        path = self.daemon.spool / "inbox" / beast.name
        end, _, words = beast.end.partition(" ")
        lies_there = os.path.lexists(path)
        if end == "stays":
            waiting = {drop["name"]: drop["why"] for drop in self.daemon.status_now()["waiting"]}
            return lies_there and words in waiting.get(shown(beast.name), "")
        if end == "runs":
            folder = self.daemon.spool / "outbox" / beast.name.removesuffix(".jsonl")
            return not lies_there and (folder / "output.jsonl").exists()
        if end == "refused":
            stem = beast.name.removesuffix(".jsonl")
            known = self.refusals()
            reason = known.get(stem) or known.get(shown(beast.name)) or {"code": ""}
            return not lies_there and str(reason["code"]).startswith(words)
        return lies_there


def check_words(data: bytes) -> None:
    """What an operator looks at holds no byte that a terminal would obey."""
    text = data.decode()
    odd = {c for c in text if not c.isprintable() and c not in "\n\t"}
    assert not odd, f"unescaped: {odd}"
    assert "\u202e" not in text


def swap(inbox: Path, stop: threading.Event) -> None:
    """Put a link to a secret and a plain file in turn under one name, by renames."""
    while not stop.is_set():
        (inbox / ".link").symlink_to("../../secret.jsonl")
        (inbox / ".link").rename(inbox / "swapped.jsonl")
        (inbox / ".plain").write_bytes(GOOD)
        (inbox / ".plain").rename(inbox / "swapped.jsonl")


def churn(inbox: Path, stop: threading.Event) -> None:
    """Rewrite a file again and again, so that it looks whole at times."""
    while not stop.is_set():
        with (inbox / "churned.jsonl").open("wb") as file:
            file.write(SECRET)
            file.flush()
            file.seek(0)
            file.write(GOOD)
            file.truncate()


@pytest.fixture
def pests() -> Iterator[Callable[..., None]]:
    """Run functions in threads until the test is done or stops them."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(*works: Callable[[Path, threading.Event], None], inbox: Path | None = None) -> None:
        if inbox is None:
            stop.set()
            for thread in threads:
                thread.join()
            return
        for work in works:
            threads.append(threading.Thread(target=work, args=(inbox, stop)))
            threads[-1].start()

    yield start
    start()


@pytest.mark.slow
def test_the_whole_zoo_is_accounted_for(
    make_daemon: MakeDaemon, pests: Callable[..., None]
) -> None:
    """Every entry runs, is refused or stays, each with its reason; memory and words are kept."""
    intake = {"incomplete_s": 3.0}
    daemon = make_daemon(intake=intake, limits={"max_queue_depth": 100})
    (daemon.folder / "secret.jsonl").write_bytes(SECRET)
    daemon.start()
    inbox, keeper = daemon.spool / "inbox", Keeper(daemon)
    pests(swap, churn, inbox=inbox)
    zoo = ZOO + (ROOTS if os.geteuid() == 0 else [])
    for beast in zoo:
        beast.make(inbox / beast.name)
    daemon.wait(
        lambda: not [beast.name for beast in zoo if not keeper.ended(beast)],
        "every beast's end",
        60,
    )
    pests()
    daemon.wait(lambda: keeper.ended(Beast("swapped.jsonl", holding(b""), "runs")), "the swapped")
    daemon.wait(lambda: not (inbox / "churned.jsonl").exists(), "the churned answered")
    stays = {b.name for b in zoo if b.end.startswith("stays") or not b.end}
    assert daemon.dropped() == stays
    ends = [b for b in zoo if b.end.startswith("refused")]
    assert len(keeper.refusals().keys() - {"churned", "swapped"}) == len(ends)
    assert not list((daemon.spool / "claimed").iterdir())
    assert not list((daemon.spool / "quarantine").iterdir())
    assert not [text for text in daemon.executions() if "never sent" in text]
    assert (daemon.spool / "outbox" / "swapped" / "output.jsonl").read_bytes().count(b"\n") == 2
    documents = [daemon.log, *daemon.spool.glob("outbox/**/status.json")]
    for path in (*documents, *daemon.spool.glob("rejected/*.reason.json")):
        check_words(path.read_bytes())
    for words in (("status",), ("jobs",), ("job", "gzip"), ("status", "--json")):
        told = inbox_daemon(*words, "--config", daemon.config)
        check_words((told.stdout + told.stderr).encode())
    assert daemon.process.rss_bytes < 20 * (1 << 20) + (100 << 20)
    assert len(daemon.run_job("afterwards", chats(2)).results) == 2
    shutil.rmtree(daemon.spool / "rejected")  # a quarter of a gigabyte


@pytest.mark.root
@needs_root
def test_another_users_entries_end_no_daemon(make_daemon: MakeDaemon) -> None:
    """What a daemon without root's powers may not read or move stays, with the reason."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    daemon = make_daemon(intake={"incomplete_s": 2.0})
    daemon.prefix = POWERLESS
    daemon.start()
    inbox = daemon.spool / "inbox"
    of_another_user(inbox / "locked.jsonl")
    (inbox / "guarded.jsonl.ready").mkdir(mode=0o700)
    os.chown(inbox / "guarded.jsonl.ready", OTHER_USER, OTHER_USER)
    (inbox / "guarded.jsonl").write_bytes(GOOD)
    (inbox / "high").rename(inbox / "high.old")
    (inbox / "high").mkdir(mode=0o755)
    (inbox / "high" / "urgent.jsonl").write_bytes(GOOD)
    os.chown(inbox / "high", OTHER_USER, OTHER_USER)
    daemon.wait_status(lambda s: "Permission denied" in str(s["waiting"]), "the locked file")
    daemon.wait_status(lambda s: "may not be moved" in str(s["reasons"]), "the lane's problem")
    assert daemon.wait_refusal("guarded")["code"] == "bad_marker"
    (inbox / "theirs.jsonl").write_bytes(GOOD)
    os.chown(inbox / "theirs.jsonl", OTHER_USER, OTHER_USER)
    daemon.wait_outcome("theirs")
    assert (inbox / "high" / "urgent.jsonl").exists()
    assert (inbox / "locked.jsonl").exists()
    os.chown(inbox / "high", 0, 0)
    daemon.wait_outcome("urgent")
    assert not daemon.events("loop_ended")
