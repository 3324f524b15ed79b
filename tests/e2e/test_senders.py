"""Deliveries as real senders make them: whole files are taken once, partial ones never."""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from daemon_process import DaemonProcess
from job_files import Json, chat, check_outputs
from processes import Process, descendants, process, wait_until
from sshd import WebApp, needs_ssh, open_account

pytestmark = [needs_ssh, pytest.mark.xdist_group("senders")]

# Enough for rsync to write a part of it before the end: it does so by 256 KiB.
LINES, LINE_BYTES = 9, 70_000
RATE = 1200  # KiB/s, so that a transfer takes more than settle_s


@dataclass
class Delivery:
    """One file that is being sent, and the daemon's events and status about it."""

    daemon: DaemonProcess
    app: WebApp
    sshd: int
    other: Path
    name: str
    lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Write the sender's file."""
        filler = "x" * LINE_BYTES
        self.lines = [chat(f"r{n}", f"{self.name} {n} {filler}") for n in range(LINES)]
        self.write()

    @property
    def inbox(self) -> Path:
        """The folder that it is sent to."""
        return self.daemon.spool / "inbox"

    @property
    def target(self) -> Path:
        """The final name."""
        return self.inbox / f"{self.name}.jsonl"

    @cached_property
    def source(self) -> Path:
        """The sender's own file."""
        return self.app.folder / f"{self.name}.jsonl"

    def write(self) -> None:
        """Make the sender's file, again if it was removed."""
        self.source.write_bytes(b"".join(self.lines))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole file."""
        return hashlib.sha256(b"".join(self.lines)).hexdigest()

    def words(self, template: str) -> list[str]:
        """A command for this file."""
        places = {
            "src": self.source,
            "host": "gpu-inbox",
            "inbox": self.inbox,
            "dst": self.target,
            "here": self.app.folder,
            "there": self.daemon.folder,
            "other": self.other,
            "cfg": self.app.folder / "ssh_config",
            "name": self.name,
        }
        return ["bash", "-euc", template.format(**places)]

    def start(self, template: str) -> "subprocess.Popen[bytes]":
        """Start a sender."""
        return subprocess.Popen(
            self.words(template),
            env=self.app.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def send(self, template: str) -> None:
        """Run the sender to its end."""
        sender = self.start(template)
        _, errors = sender.communicate(timeout=60)
        assert sender.returncode == 0, errors.decode()

    # -- what became of it ------------------------------------------------------------

    def events(self, event: str) -> list[Json]:
        """The events of that kind about this job."""
        return [entry for entry in self.daemon.events(event) if entry["job"] == self.name]

    def waiting(self) -> dict[str, str]:
        """The waiting files in the health whose names contain this job's."""
        drops = self.daemon.status_now()["waiting"]
        return {drop["name"]: drop["why"] for drop in drops if self.name in drop["name"]}

    def check_taken_once(self) -> None:
        """Check that the file became one job, ran each line once, and left nothing else."""
        folder = self.daemon.wait_outcome(self.name)
        assert check_outputs(self.lines, folder).status["sha256"] == self.sha256
        self.daemon.wait(lambda: not self.target.exists(), f"{self.name} taken away")
        assert len(self.events("job_queued")) == 1
        assert not self.events("job_rejected")
        texts = [text for text in self.daemon.executions() if text.split()[0] == self.name]
        assert len(texts) == len(self.lines)

    def check_taken_again(self, template: str) -> None:
        """Send once more; check that the file is recognised and does not run."""
        before = len(self.events("job_redelivered"))
        self.write()
        self.send(template)
        self.daemon.wait(
            lambda: len(self.events("job_redelivered")) > before, f"{self.name} known again"
        )
        self.check_taken_once()

    def kill(self, sender: "subprocess.Popen[bytes]", victim: str, number: signal.Signals) -> None:
        """End one side of a running rsync."""
        parent = sender.pid if victim == "sender" else self.sshd
        for member in self._rsyncs(parent, server=victim == "receiver"):
            if member.alive:
                os.kill(member.pid, number)
        sender.communicate(timeout=60)
        wait_until(lambda: not self._rsyncs(self.sshd, server=True), "the receiver's end")

    def _rsyncs(self, parent: int, *, server: bool) -> list[Process]:
        """Processes of rsync below another that are alive."""
        family = [found for found in [process(parent)] if found] + descendants(parent)
        found = [p for p in family if p.command.startswith("rsync ") and p.alive]
        return [p for p in found if ("--server" in p.command.split()) is server]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Return a daemon that takes whatever all tests of this module send."""
    limits = {"max_queue_depth": 100}
    made = DaemonProcess(tmp_path_factory.mktemp("senders") / "daemon", limits=limits)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebApp, int]]:
    """Return a sender's account, and sshd's process."""
    with open_account(tmp_path_factory.mktemp("account") / "app") as made:
        yield made


@pytest.fixture(scope="module")
def other(daemon: DaemonProcess) -> Iterator[Path]:
    """Return a folder on another filesystem than the spool."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == daemon.spool.stat().st_dev:
        pytest.skip("there is no second filesystem to write to")
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder)


MakeDelivery = Callable[[str], Delivery]


@pytest.fixture
def deliver(daemon: DaemonProcess, account: tuple[WebApp, int], other: Path) -> MakeDelivery:
    """Make files that are to be sent."""

    def make(name: str) -> Delivery:
        return Delivery(daemon, *account, other, name)

    return make


# Every command delivers {src} as {dst}; $SLOW in it is a limit of its speed.
RSYNC = {
    "archive": "-a",
    "inplace": "-a --inplace",
    "append": "-a --append",
    "append-verify": "-a --append-verify",
    "partial": "-a --partial",
    "partial-dir": "-a --partial-dir=.rsync-partial",
    "delay-updates": "-a --delay-updates",
    "temp-dir-here": "-a --temp-dir={there}",
    "temp-dir-elsewhere": "-a --temp-dir={other}",
    "remove-source-files": "-a --remove-source-files",
    "sparse": "-a --sparse",
    "sparse-inplace": "-a --sparse --inplace",
    "preallocate": "-a --preallocate",
    "preallocate-inplace": "-a --preallocate --inplace",
    "compress": "-az",
    "fuzzy": "-a --fuzzy",
    "no-times": "--no-times",
    "fsync": "-a --fsync",
    "future": "-a",
}
SCRIPTS = {
    "scp": "scp -q $SCP -F {cfg} {src} {host}:{dst}",
    "scp-old-protocol": "scp -O -q $SCP -F {cfg} {src} {host}:{dst}",
    "scp-preserving": "scp -p -q $SCP -F {cfg} {src} {host}:{dst}",
    "sftp": "echo put {src} {dst} | sftp -q $SCP -F {cfg} -b - {host}",
    "sftp-renamed": "printf 'put {src} {dst}.part\\nrename {dst}.part {dst}\\n'"
    " | sftp -q $SCP -F {cfg} -b - {host}",
    "ssh-cat": "ssh -F {cfg} {host} 'cat > {dst}' < {src}",
    "tar": "tar -C {here} -c {name}.jsonl | ssh -F {cfg} {host} tar -C {inbox} -x",
    "cp": "cp {src} {dst}",
    "cp-sparse": "cp --sparse=always {src} {dst}",
    "install": "install -m 640 {src} {dst}",
    "mv": "cp {src} {there}/{name}.tmp; mv {there}/{name}.tmp {dst}",
    "mv-from-elsewhere": "cp {src} {other}/{name}; mv {other}/{name} {dst}",
    "mv-within": "cp {src} {inbox}/{name}.jsonl.part; mv {inbox}/{name}.jsonl.part {dst}",
    "ln-and-rm": "cp {src} {there}/{name}.tmp; ln {there}/{name}.tmp {dst}; rm {there}/{name}.tmp",
    "slow-writer": "split -b 130000 --filter='cat; sleep 0.1' {src} > {dst}",
    "slow-reopener": "split -b 250001 --filter='cat >> {dst}; sleep 0.5' {src}",
    "out-of-order": "exec 3<>{dst}; dd if={src} of={dst} bs=100000 skip=3 seek=3 status=none;"
    " sleep 0.5; dd if={src} of={dst} bs=100000 count=3 conv=notrunc status=none",
    "truncate-first": "exec 3>{dst}; truncate -s 9999999 {dst}; sleep 0.5; cat {src} >&3;"
    " truncate -s $(stat -c %s {src}) {dst}",
    "empty-first": "touch -d @0 {dst}; sleep 0.5; cat {src} >> {dst}",
}
SENDERS = {
    name: f"rsync $SLOW {options} {{src}} {{host}}:{{inbox}}/" for name, options in RSYNC.items()
} | SCRIPTS


def at_speed(template: str, rate: int | None) -> str:
    """Fill in a limit in KiB/s, or none."""
    slow, scp = (f"--bwlimit={rate}", f"-l {rate * 8}") if rate else ("", "")
    return template.replace("$SLOW", slow).replace("$SCP", scp)


@pytest.mark.parametrize("sender", SENDERS)
def test_what_a_sender_delivers_is_taken_once(deliver: MakeDelivery, sender: str) -> None:
    """The whole file becomes one job, and the same file sent again is known."""
    delivery = deliver(f"whole-{sender}")
    if sender == "future":
        os.utime(delivery.source, (2**33, 2**33))
    delivery.send(at_speed(SENDERS[sender], RATE))
    delivery.check_taken_once()
    if sender == "future":
        os.utime(delivery.source, (2**33, 2**33))
    delivery.check_taken_again(at_speed(SENDERS[sender], None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("sender", signal.SIGTERM),
        ("sender", signal.SIGKILL),
        ("receiver", signal.SIGKILL),
    ],
    ids=["sender-TERM", "sender-KILL", "receiver-KILL"],
)
@pytest.mark.parametrize(
    "option", ["archive", "partial", "partial-dir", "delay-updates", "inplace", "append"]
)
def test_a_killed_rsync_is_taken_once_repeated(
    deliver: MakeDelivery, option: str, victim: str, number: signal.Signals
) -> None:
    """What a killed rsync leaves is not taken, and a second run of it delivers the file."""
    delivery = deliver(f"killed-{option}-{victim}-{number.name}")
    sender = delivery.start(at_speed(SENDERS[option], RATE // 2))
    wait_until(lambda: written(delivery), "a part of the file")
    delivery.kill(sender, victim, number)
    left = [path for path in delivery.inbox.iterdir() if delivery.name in path.name]
    delivery.daemon.wait(
        lambda: {path.name for path in left} <= delivery.waiting().keys(), "reasons for the rest"
    )
    delivery.daemon.wait_writings(2)
    assert not delivery.events("job_queued")
    # Whether a killed receiver can still rename what it has depends on rsync.
    if (option, victim) != ("partial", "receiver"):
        assert delivery.target.exists() == (option in {"partial", "inplace", "append"})
    delivery.send(at_speed(SENDERS[option], None))
    delivery.check_taken_once()


def written(delivery: Delivery) -> int:
    """Return how many bytes of the file are anywhere in inbox/ by now."""
    found = [path for path in delivery.inbox.rglob(f"*{delivery.name}*") if path.is_file()]
    return sum(path.stat().st_blocks for path in found if path.exists())


@pytest.mark.parametrize("option", ["archive", "inplace", "append", "delay-updates", "sparse"])
def test_two_senders_of_one_file_give_one_job(deliver: MakeDelivery, option: str) -> None:
    """The same rsync started twice at once is one job, or the job and its re-delivery."""
    delivery = deliver(f"twice-{option}")
    senders = [delivery.start(at_speed(SENDERS[option], RATE)) for _ in range(2)]
    for sender in senders:
        sender.communicate(timeout=60)
    assert [sender.returncode for sender in senders] == [0, 0]
    delivery.check_taken_once()


def test_two_senders_of_one_name_are_never_mixed(deliver: MakeDelivery) -> None:
    """Of two files of one name one runs whole, and the other is overwritten or refused whole."""
    first, second = deliver("same"), deliver("same")
    second.source = first.source.with_name("other") / "same.jsonl"
    second.source.parent.mkdir()
    second.lines = [line.replace(b"xxx", b"yyy") for line in first.lines]
    second.write()
    senders = [d.start(at_speed(SENDERS["archive"], RATE)) for d in (first, second)]
    for sender in senders:
        sender.communicate(timeout=60)
    assert [sender.returncode for sender in senders] == [0, 0]
    sha256 = first.daemon.notice("same")["sha256"]
    assert sha256 in {first.sha256, second.sha256}
    winner, loser = (first, second) if sha256 == first.sha256 else (second, first)
    check_outputs(winner.lines, winner.daemon.wait_outcome("same"))
    winner.daemon.wait(lambda: not winner.target.exists(), "both answered")
    refused = winner.daemon.spool / "rejected" / "same.jsonl"
    if loser.events("job_rejected"):
        assert refused.read_bytes() == b"".join(loser.lines)
    assert len(winner.events("job_queued")) == 1


def test_a_hard_link_is_taken_once_it_is_the_only_one(deliver: MakeDelivery) -> None:
    """A file with two names is left with the reason, until its sender removes one of them."""
    delivery = deliver("linked")
    kept = delivery.daemon.folder / "linked.tmp"
    kept.write_bytes(b"".join(delivery.lines))
    os.link(kept, delivery.target)
    delivery.daemon.wait(lambda: "2 links" in str(delivery.waiting()), "the reason")
    kept.unlink()
    delivery.check_taken_once()
