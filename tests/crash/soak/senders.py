"""Senders: files, dropped in every way that docs/SENDERS.md allows, and sent again.

Invariants: a drop is recorded before it is made; options come before their file; what a
full disk has cut is taken away by its sender before the daemon may take it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from daemon_process import inbox_daemon
from job_files import Json
from soak.desk import Actor, Desk
from soak.jobs import VALID, SentJob, make_job

SCRIPTS = Path(__file__).parents[3] / "deploy" / "sender"
PLAIN = ("rename", "rsync")
MOST_OPEN = 12
_PIECE = 2_000
_KEPT = 40


def fake_ssh(folder: Path, target: Path) -> Path:
    """A program that rsync takes for ssh: it runs the other side here, in `target`."""
    script = folder / f"ssh-to-{target.name}"
    script.write_text(f"#!/bin/sh\nshift\ncd '{target}' && exec sh -c \"$*\"\n")
    script.chmod(0o755)
    return script


class Sender(Actor):
    """One sender with jobs of its own."""

    def __init__(self, desk: Desk, number: int, pause_s: tuple[float, float]) -> None:
        """Know its ways."""
        super().__init__(desk, f"sender {number}", pause_s)
        self.folder = desk.folder / f"sender-{number}"
        self.folder.mkdir()
        self._number, self._made = number, 0
        self._mine: list[SentJob] = []
        self._ssh = fake_ssh(self.folder, desk.spool / "inbox")
        self._ways: dict[str, Callable[[SentJob, Path], None]] = {
            "rename": self._rename,
            "slow": self._write_slowly,
            "marker first": self._marker_first,
            "submit": self._submit,
        }
        if shutil.which("rsync"):
            self._ways |= {"rsync": self._rsync, "inbox-send": self._inbox_send}

    def turn(self) -> None:
        """Send one again that was refused for now, a new one, or one that was answered."""
        self._mine = [job for job in self._mine if not job.final]
        waiting = [job for job in self._mine if job.to_send]
        if waiting and self.rng.random() < 0.7:
            self.send(self.rng.choice(waiting))
        elif self.rng.random() < 0.1:
            self._send_again()
        elif self.rng.random() < 0.03:
            self._leave_an_oddity()
        elif len(self.desk.open_jobs()) < MOST_OPEN:
            self._made += 1
            job = make_job(self.rng, f"s{self._number}-{self._made}")
            with self.desk.lock:
                self.desk.jobs[job.sha256] = job
            self._mine.append(job)
            self.send(job)

    def resend(self) -> None:
        """After the end of all trouble: what was refused for now is sent until it is taken."""
        for job in [job for job in self._mine if job.to_send and not job.final]:
            self.send(job)

    def send(self, job: SentJob) -> None:
        """Drop a file in one of the ways."""
        ways = sorted(self._ways) if job.kind == VALID else [w for w in PLAIN if w in self._ways]
        job.way = self.rng.choice(ways) if job.kind != "bad_name" else "rename"
        lane = self.desk.spool / "inbox" / job.lane
        at = self.act(f"by {job.way}", job=job.name, kind=job.kind, lane=job.lane, n=len(job.texts))
        with self.desk.lock:
            job.drops.append(at)
            job.to_send = False
        try:
            if job.options:
                options = json.dumps(job.options).encode()
                _place(lane / f"{job.name}.options.json", options)
            self._ways[job.way](job, lane)
            if self.rng.random() < 0.05 and job.kind == VALID:  # a second one at once
                self._rename(job, self.desk.spool / "inbox" / self.rng.choice(("", "high", "low")))
        except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            self.act("cut", job=job.name, why=str(error)[:200])
            with self.desk.lock:
                job.to_send = not job.final

    # -- ways -----------------------------------------------------------------------------

    def _rename(self, job: SentJob, lane: Path) -> None:
        _place(lane / job.file, job.data)

    def _rsync(self, job: SentJob, lane: Path) -> None:
        _run("rsync", "--chmod=F640", self._keep(job), f"{lane}/{job.file}")

    def _inbox_send(self, job: SentJob, _lane: Path) -> None:
        lane = ("-p", job.lane) if job.lane else ()
        _run("sh", SCRIPTS / "inbox-send", *lane, "gpu", self._keep(job), ssh=self._ssh)

    def _submit(self, job: SentJob, _lane: Path) -> None:
        lane = ("--priority", job.lane) if job.lane else ()
        command = inbox_daemon("submit", *lane, self._keep(job), "--config", self.desk.config)
        if command.returncode != 0:
            raise OSError(command.stderr[-300:])

    def _write_slowly(self, job: SentJob, lane: Path) -> None:
        """Under its own name, open all the while."""
        path = lane / job.file
        with path.open("wb", buffering=0) as file:
            try:
                for piece in self._pieces(job.data):
                    file.write(piece)
                    time.sleep(self.rng.uniform(0, 0.8))
            except OSError:
                path.unlink()
                raise

    def _marker_first(self, job: SentJob, lane: Path) -> None:
        """Opened again for each piece, behind a marker that says what the whole file is."""
        marker = {"bytes": len(job.data), "sha256": job.sha256}
        _place(lane / f"{job.file}.ready", json.dumps(marker).encode())
        path = lane / job.file
        for number, piece in enumerate(self._pieces(job.data)):
            with path.open("ab" if number else "wb", buffering=0) as file:
                file.write(piece)
            time.sleep(self.rng.uniform(0, 0.6))

    def _pieces(self, data: bytes) -> list[bytes]:
        size = max(_PIECE, len(data) // 5 + 1)
        return [data[start : start + size] for start in range(0, len(data), size)]

    def _keep(self, job: SentJob) -> Path:
        """The sender's own copy; it is replaced by the next one."""
        for old in self.folder.glob("*.jsonl"):
            old.unlink()
        path = self.folder / job.file
        path.write_bytes(job.data)
        return path

    # -- what else senders do -----------------------------------------------------------------

    def _send_again(self) -> None:
        """The same bytes once more, which are answered and not run."""
        with self.desk.lock:
            done = [job for job in self.desk.jobs.values() if job.answers and job.data]
            job = self.rng.choice(done[-_KEPT:]) if done else None
        if job is not None:
            self.act("redelivery", job=job.name)
            with contextlib.suppress(OSError):
                _place(self.desk.spool / "inbox" / job.lane / job.file, job.data)

    def _leave_an_oddity(self) -> None:
        """Something that is no file, or no file of its own: it is never taken."""
        kind = self.rng.choice(("folder", "link", "fifo", "hidden", "links"))
        name = hashlib.sha256(self.rng.randbytes(8)).hexdigest()[:8]
        path = self.desk.spool / "inbox" / f"{'.' if kind == 'hidden' else ''}odd-{name}.jsonl"
        other = path.with_name(f".other-{name}")
        self.act("oddity", kind=kind, path=path.name)
        with contextlib.suppress(OSError):
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to("/etc/hostname")
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "hidden":
                path.write_bytes(b"{}\n")
            else:
                other.write_bytes(b"{}\n")
                os.link(other, path)
        # What a full disk has let be made of it.
        self.desk.oddities |= {made for made in (path, other) if os.path.lexists(made)}


def _place(path: Path, data: bytes) -> None:
    """Write under a hidden name, then rename; nothing is left when that fails."""
    hidden = path.with_name(f".{path.name[:80]}.part{time.monotonic_ns()}")
    try:
        hidden.write_bytes(data)
        hidden.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise


def _run(*words: str | Path, ssh: Path | None = None) -> None:
    env: Json = dict(os.environ) | ({"RSYNC_RSH": str(ssh)} if ssh else {})
    subprocess.run([*map(str, words)], env=env, check=True, capture_output=True, timeout=120)
