"""Those who use the service beside the senders: orders, fetchers, readers.

Invariants: an order is recorded before it is given; a folder is judged before it is removed,
by what it holds at the moment in which it is taken out of outbox/ by one rename.
"""

import contextlib
import filecmp
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import orjson

from daemon_process import environment
from job_files import Json
from soak.desk import Actor, Desk, read_json
from soak.history import Order, Violation
from soak.jobs import VALID, SentJob
from soak.senders import SCRIPTS, fake_ssh
from soak.service_truths import judge_counts
from soak.truths import judge_answer, judge_job, judge_refusal

_PATIENCE_S = 60.0
_ORDERS = ("cancel", "pause", "resume", "redrive", "purge")
# A refused order in rejected/; a second one of its name has its id behind it.
_ORDER_FILE = re.compile(rf"\.({'|'.join(_ORDERS)})(\.[0-9A-Z]{{26}})?$")
_CONTROL_CODES = frozenset({"unknown_job", "no_dead_letters", "queue_full"})
_KEPT = 40
# What `verify` says of a job that has nothing to prove.
_NO_PROOF = re.compile("no job|cannot be verified")


def run_command(desk: Desk, *words: str, kill_after_s: float | None = None) -> tuple[int, str, str]:
    """Run a command to its end, or kill it after a while; its status and what it printed."""
    command = [sys.executable, "-m", "inbox_daemon", *words, "--config", str(desk.config)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(COLUMNS="200"),
        text=True,
    )
    try:
        out, err = child.communicate(timeout=kill_after_s or _PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        if kill_after_s is None:
            what = f"{' '.join(words)} took more than {_PATIENCE_S:g} s"
            desk.accuse([Violation("command_failed", what, time.monotonic())])
        return -9, out, err
    return child.returncode, out, err


class Orders(Actor):
    """Cancels, pauses, resumes, redrives and purges, by files and by commands."""

    def __init__(self, desk: Desk, pause_s: tuple[float, float]) -> None:
        """Nothing is paused yet."""
        super().__init__(desk, "orders", pause_s)
        self._paused: list[str] = []

    def turn(self) -> None:
        """Give one order."""
        if self._paused and self.rng.random() < 0.7:
            self.give(self._paused.pop(0), "resume")
            return
        what = self.rng.choices(_ORDERS, (25, 30, 5, 30, 10))[0]
        name = self._pick(what)
        if name is None:
            return
        self.give(name, what)
        if what == "pause":
            self._paused.append(name)

    def _pick(self, what: str) -> str | None:
        if self.rng.random() < (0.02 if what == "cancel" else 0.1):
            return "ALL"
        with self.desk.lock:
            jobs = list(self.desk.jobs.values())
        if what in {"redrive", "purge"}:
            names = [job.name for job in jobs if job.dead]
        else:
            names = [job.name for job in jobs if job.kind == VALID and not job.final and job.drops]
        return self.rng.choice(names) if names else None

    def give(self, name: str, what: str) -> None:
        """Give an order, by a file or by a command."""
        by_file = self.rng.random() < 0.6 or (name == "ALL" and what in {"cancel", "purge"})
        at = self.act(what, job=name, by="file" if by_file else "command")
        self.desk.history.orders.append(Order(at, name, what))
        if by_file:
            self._drop(name, what)
            return
        words = ["dead", what] if what in {"redrive", "purge"} else [what]
        words += [name] if name != "ALL" else ["--all"] if len(words) > 1 else []
        status, _out, err = run_command(self.desk, *words, kill_after_s=15.0)
        if status not in {0, 1, 2, -9} or "Traceback" in err:
            what = f"{' '.join(words)} ended with {status}: {err[-600:]}"
            self.desk.accuse([Violation("command_failed", what, time.monotonic())])

    def _drop(self, name: str, what: str) -> None:
        lane = self.desk.spool / "inbox" / self.rng.choice(("", "", "high", "low"))
        hidden = lane / f".{name}.{what}.part"
        try:
            hidden.write_bytes(b"")
            hidden.rename(lane / f"{name}.{what}")
        except OSError:
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)

    def rest(self) -> None:
        """Nothing stays paused."""

    def resume_all(self) -> None:
        """Let everything go on, at the end."""
        names = {order.name for order in self.desk.history.orders if order.what == "pause"}
        with self.desk.lock:
            active = {job.name for job in self.desk.jobs.values() if not job.final}
        for name in sorted(names & (active | {"ALL"})):
            at = self.act("resume", job=name, by="file")
            self.desk.history.orders.append(Order(at, name, "resume"))
            self._drop(name, "resume")


class Fetcher(Actor):
    """Collects results and refusals, has them judged, and removes them."""

    def __init__(self, desk: Desk, number: int, pause_s: tuple[float, float]) -> None:
        """Have a folder of its own, on the spool's filesystem and beside it."""
        super().__init__(desk, f"fetcher {number}", pause_s)
        self.until = desk.closed
        self._taken = desk.spool.parent / f"taken-{number}"
        self._taken.mkdir()
        self._copies = desk.folder / f"fetched-{number}"
        self._copies.mkdir()
        self._ssh = fake_ssh(self._copies, desk.spool / "outbox")

    def turn(self) -> None:
        """Take some of what lies in outbox/ and rejected/."""
        share = 1.0 if self.desk.stop.is_set() else 0.5
        for folder in sorted((self.desk.spool / "outbox").iterdir()):
            if folder.is_dir() and self.rng.random() < share:
                self._take(folder)
        for path in sorted((self.desk.spool / "rejected").glob("*.reason.json")):
            if self.rng.random() < share:
                self._take_refusal(path)

    # -- outbox/ ----------------------------------------------------------------------------

    def _take(self, folder: Path) -> None:
        status = read_json(folder / "status.json")
        if status is None:
            if folder.exists() and not (folder / "status.json").exists() and folder.is_dir():
                self._look_at_incomplete(folder)
            return
        if not status.get("output_file_id"):
            self._take_notice(folder, status)
            return
        if self.rng.random() < 0.1:
            self._verify(folder.name)
        copy = self._fetch(folder.name) if self.rng.random() < 0.15 else None
        seen_at, target = time.monotonic(), self._taken / status["id"]
        try:
            folder.rename(target)
        except OSError:  # another fetcher was first, or the disk is full
            return
        self.act("took", job=folder.name, id=status["id"], status=status["status"])
        self._judge(target, status, seen_at)
        if copy is not None and filecmp.dircmp(copy, target).diff_files:
            what = f"inbox-fetch of {folder.name} differs from outbox/"
            self.desk.accuse([Violation("fetch_differs", what, seen_at)])
        shutil.rmtree(target)
        if copy is not None:
            shutil.rmtree(copy)

    def _look_at_incomplete(self, folder: Path) -> None:
        time.sleep(0.2)
        if folder.is_dir() and not (folder / "status.json").exists():
            what = f"outbox/{folder.name} has no status.json"
            self.desk.accuse([Violation("broken_output", what, time.monotonic())])

    def _take_notice(self, folder: Path, status: Json) -> None:
        """A refusal or the answer to a redelivery; the next of its name replaces it."""
        if status["status"] not in {"failed", "completed", "cancelled", "expired"}:
            what = f"the notice {folder.name} says {status['status']}"
            self.desk.accuse([Violation("broken_output", what, time.monotonic())])
        if self.rng.random() < 0.5:
            target = self._taken / f"notice-{folder.name}"
            with contextlib.suppress(OSError):
                folder.rename(target)
                self.act("took a notice", job=folder.name, status=status["status"])
                taken = read_json(target / "status.json")
                if taken and taken.get("output_file_id"):  # it gave way to results meanwhile
                    self._judge(target, taken, time.monotonic())
                shutil.rmtree(target)

    def _judge(self, folder: Path, status: Json, seen_at: float) -> None:
        desk = self.desk
        desk.journal.catch_up()
        job = self._whose(folder, status)
        if job is None:
            what = f"{status['name']} ({status['id']}) was never sent"
            desk.accuse([Violation("unknown_folder", what, seen_at)])
            return
        with desk.history.held():
            found = judge_job(job, folder, desk.history, desk.rules, seen_at, desk.figures)
            desk.history.close_job(status["id"], seen_at)
        counts = status["request_counts"]
        with desk.lock:
            desk.figures["jobs"] += 1
            desk.figures[f"jobs {status['status']}"] += 1
            found += judge_answer(job, status["id"], seen_at)
            desk.published[status["id"]] = counts["completed"], counts["failed"]
            job.final, job.dead = True, counts["failed"]
            self._forget()
        desk.accuse(found)
        service = read_json(desk.spool / "outbox" / "status.json")
        if service is not None:
            desk.accuse(judge_counts(service, desk.published, seen_at))

    def _whose(self, folder: Path, status: Json) -> SentJob | None:
        """The file that was sent, or for a redrive the lines that it was made of."""
        job = self.desk.jobs.get(status["sha256"])
        if job is not None or not status["redrive_of"]:
            return job
        base = self.desk.named(status["name"].partition(".redrive-")[0])
        orders = self.desk.history.orders
        if base is None or not base.data or not any(o.what == "redrive" for o in orders):
            return None
        wanted = set()
        for name in ("output.jsonl", "errors.jsonl"):
            if (folder / name).exists():
                lines = (folder / name).read_bytes().splitlines()
                wanted |= {json.loads(line)["custom_id"] for line in lines}
        requests = [json.loads(line) for line in base.lines]
        # A redrive's lines are written by the daemon, from the requests that it has kept.
        kept = [orjson.dumps(r) + b"\n" for r in requests if r["custom_id"] in wanted]
        options = {"metadata": status["metadata"] or {}}
        return SentJob(
            status["name"], b"".join(kept), base.texts, drops=list(base.drops), options=options
        )

    def _forget(self) -> None:
        """Drop the content of jobs that ended well, but for the newest."""
        done = [job for job in self.desk.jobs.values() if job.final and job.data and not job.dead]
        for job in done[:-_KEPT]:
            job.data, job.texts = b"", {}

    def _verify(self, name: str) -> None:
        status, out, err = run_command(self.desk, "verify", name)
        if status != 0 and (self.desk.spool / "outbox" / name / "output.jsonl").exists():
            what = f"verify {name} ended with {status}: {(out + err)[-600:]}"
            self.desk.accuse([Violation("not_verified", what, time.monotonic())])

    def _fetch(self, name: str) -> Path | None:
        words = ["sh", str(SCRIPTS / "inbox-fetch"), "gpu", name, str(self._copies)]
        env = dict(os.environ) | {"RSYNC_RSH": str(self._ssh)}
        status = subprocess.run(words, env=env, check=False, capture_output=True).returncode
        self.act("inbox-fetch", job=name, status=status)
        return self._copies / name if status == 0 else None

    # -- rejected/ ----------------------------------------------------------------------------

    def _take_refusal(self, path: Path) -> None:
        reason = read_json(path)
        if reason is None:
            return
        file = path.parent / reason["file"]
        try:
            data = file.read_bytes()
        except OSError:
            return
        now = time.monotonic()
        self.act("took a refusal", file=reason["file"], code=reason["code"])
        with self.desk.lock:
            self.desk.figures[f"refused {reason['code']}"] += 1
            self.desk.accuse(self._judge_refusal(reason, data, now))
        for name in (path, file):
            name.unlink(missing_ok=True)

    def _judge_refusal(self, reason: Json, data: bytes, now: float) -> list[Violation]:
        code = reason["code"]
        if _ORDER_FILE.search(reason["file"]):
            if code in _CONTROL_CODES | {"too_many_queued_requests"}:
                return []
            return [Violation("wrong_refusal", f"the order {reason['file']}: {code}", now)]
        job = self.desk.jobs.get(hashlib.sha256(data).hexdigest())
        if job is None and code == "truncated":
            named = self.desk.named(reason["name"])
            job = named if named and named.data.startswith(data) else None
        if job is None and reason["name"].partition(".redrive-")[1]:
            return []
        if job is None:
            what = f"rejected/{reason['file']} ({code}, {len(data)} bytes) was never sent"
            return [Violation("unknown_refusal", what, now)]
        return judge_refusal(job, code, now)


class Reader(Actor):
    """Runs the commands that read, and kills some in the middle."""

    def __init__(self, desk: Desk, pause_s: tuple[float, float]) -> None:
        """Nothing is read yet."""
        super().__init__(desk, "reader", pause_s)

    def turn(self) -> None:
        """Run one command."""
        names = [job.name for job in self.desk.open_jobs() if job.kind == VALID] or ["none"]
        name = self.rng.choice(names)
        words = self.rng.choice(
            (
                ["status", "--json"],
                ["status"],
                ["jobs", "--json"],
                ["job", name],
                ["dead", "list", "--json"],
                ["verify", name],
            )
        )
        kill_s = self.rng.uniform(0.05, 1.0) if self.rng.random() < 0.3 else None
        self.act(" ".join(words[:2] if words[0] == "dead" else words[:1]), killed=kill_s)
        status, out, err = run_command(self.desk, *words, kill_after_s=kill_s)
        if status == -9:
            return
        bad = status not in {0, 1} or "Traceback" in err
        if "--json" in words and status == 0 and not bad:
            try:
                # At newlines alone: a text may hold U+2028.
                for document in [out] if words[0] != "dead" else out.split("\n")[:-1]:
                    json.loads(document)
            except ValueError:
                bad = True
        if words[0] == "verify" and status == 1 and not _NO_PROOF.search(out + err):
            bad = True
        if bad:
            what = f"{' '.join(words)} ended with {status}: {(out + err)[-600:]}"
            self.desk.accuse([Violation("command_failed", what, time.monotonic())])
