"""rejected/: refusing a drop, and what was refused before.

Purpose: carry out a rejection so that a crash in its middle is finished.
Invariants: nothing in rejected/ is overwritten; a reason is written before its file
moves, so that no file lies there unexplained.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from inbox_daemon.contract.names import is_control_name, is_sidecar
from inbox_daemon.contract.states import Event, JobState, after
from inbox_daemon.spool import durable
from inbox_daemon.spool.layout import Layout, claim_of

# A rejection that is being carried out, in claimed/, by the ULID of its claim.
# The options of a refused job; no name that a drop can have.
_KEPT = ".options.kept"
_ID = re.compile(r"\.[0-9A-Z]{26}$")
_NOTE = re.compile(r"[0-9A-Z]{26}\.reason\.json$")


class Rejections(Layout):
    """What is done to refused files."""

    def rejected_as(self, stem: str, suffix: str, job_id: str) -> str:
        """The file stem under which a rejection of `stem` will lie, taken by none yet."""
        taken = [f"{stem}{suffix}", f"{stem}.reason.json"]
        if any(durable.exists(self.rejected / name) for name in taken):
            return f"{stem}.{job_id}"
        return stem

    def reject(
        self,
        job_id: str,
        file: str,
        reason: bytes,
        source: Path,
        record: Callable[[bytes], None],
        at: float | None = None,
    ) -> None:
        """Carry out a rejection: the file, then its reason, into rejected/.

        The reason is written first, beside the claims, so that a crash at any point
        is undone or finished by `finish_rejections`.  What was taken out of the drop's lane under
        this id goes.  `record` takes the reason once the refusal is certain, and again after
        a crash before its end.  `at` is when, in seconds since 1970; None means the disk's time.
        """
        note = self.claimed / f"{job_id}.reason.json"
        durable.write_file(note, reason, at=at)
        durable.sync_dir(self.claimed)
        after(JobState.CLAIMED, Event.REJECT)
        durable.move(source, self.rejected / file)
        record(reason)
        self._explain(job_id, file)

    def keep_options(self, file: str, options: bytes) -> None:
        """Keep the options of a refused job beside it, for the same file that is sent again."""
        name = f"{file.removesuffix('.jsonl')}{_KEPT}"
        durable.replace_file(self.rejected / name, options, self.claimed)

    def kept_options(self, name: str, sha256: str) -> bytes | None:
        """The options that came with the same file when it was refused for the time being."""
        for path in sorted(self.rejected.glob(f"{name}*{_KEPT}"), reverse=True):
            stem = path.name.removesuffix(_KEPT)
            with contextlib.suppress(OSError, orjson.JSONDecodeError, AttributeError):
                why = orjson.loads((self.rejected / f"{stem}.reason.json").read_bytes())
                if (why.get("name"), why.get("sha256")) == (name, sha256) and why.get("retryable"):
                    return path.read_bytes()
        return None

    def _explain(self, job_id: str, file: str) -> None:
        """Let go of the drop of a file that lies in rejected/, and put its reason there."""
        for taken in self.claimed.glob(f"{job_id}.*.drop"):
            durable.remove_tree(taken)
        note = self.claimed / f"{job_id}.reason.json"
        durable.move(note, self.rejected / f"{file.removesuffix('.jsonl')}.reason.json")

    def finish_rejections(self, record: Callable[[bytes], None]) -> set[str]:
        """After a crash: complete the rejections that were being carried out.

        A reason whose file is not with us is dropped: the next scan finds that again.
        `record` takes each of the others, as in `reject`.  Each is tried alone: returns the
        claims of those that stay.
        """
        left = set()
        for note in sorted(self.claimed.iterdir()):
            if _NOTE.match(note.name):
                with self.troubles.alone(note, "moved to rejected/"):
                    self._finish_rejection(note, record)
                if note in self.troubles:
                    left.add(claim_of(note))
        return left

    def _finish_rejection(self, note: Path, record: Callable[[bytes], None]) -> None:
        try:
            file: str | None = str(orjson.loads(note.read_bytes())["file"])
        except (orjson.JSONDecodeError, KeyError):  # the crash came before it was whole
            file = None
        job_id = claim_of(note)
        if file and durable.exists(self.claim_path(job_id)):
            durable.move(self.claim_path(job_id), self.rejected / file)
        if file and durable.exists(self.rejected / file):
            durable.sync_dir(self.rejected)  # as an earlier attempt may not have come so far
            record(note.read_bytes())
            self._explain(job_id, file)
        else:
            durable.remove_file(note)

    def rejections(self) -> Iterator[tuple[list[str], float, int]]:
        """Each refusal in rejected/: its files' names, when, and the bytes that it takes.

        What it takes on the disk: a sparse file would push all others out by its length.
        """
        for reason in sorted(self.rejected.glob("*.reason.json")):
            stem = reason.name.removesuffix(".reason.json")
            found = None
            with self.troubles.alone(reason, "looked at"):
                looks: dict[str, os.stat_result] = {}
                # An order or a sidecar lies there under its own name; what has the name of a
                # job without its suffix may be another refusal's reason.
                plain = _ID.sub("", stem)
                itself = [stem] if is_control_name(plain) or is_sidecar(plain) else []
                for name in (f"{stem}.jsonl", f"{stem}{_KEPT}", *itself, reason.name):
                    with contextlib.suppress(FileNotFoundError):
                        looks[name] = (self.rejected / name).lstat()
                size = sum(look.st_blocks * 512 for look in looks.values())
                if reason.name in looks:
                    found = list(looks), looks[reason.name].st_mtime, size
            if found is not None:
                yield found

    def remove_rejection(self, names: list[str]) -> None:
        """Remove the files of one refusal, all of them or none.

        Raises OSError: one cannot be removed.
        """
        self.remove_whole([self.rejected / name for name in names])
