"""What happened, as the witness knows it: executions, ends of the daemon, orders, trouble.

Purpose: the facts that the truths are checked against.  None of them comes from the daemon.
Invariants: all times are seconds of the machine's monotonic clock, which the server's
processes share; whatever is asked here answers from what was recorded, and decides nothing.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from job_files import Json

# An answer may be lost with the process that gave it until the other side has read it.
_ON_THE_WAY_S = 3.0


@dataclass(frozen=True, slots=True)
class Violation:
    """A truth that did not hold: its code, what was seen, and when (monotonic seconds)."""

    code: str
    what: str
    at: float = 0.0


@dataclass(slots=True)
class Execution:
    """One execution of a request by a server; `kind` is ok, refused or failed.

    It stays empty while the request runs, and where the server or the client ended first.
    """

    server: str
    text: str
    begun: float
    ended: float | None = None
    kind: str = ""
    status: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """One end of the daemon; `asked` says how we asked for it, empty if we did not."""

    at: float
    status: int
    asked: str = ""
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Order:
    """One order, noted before it was given; `name` is a job's or ALL."""

    at: float
    name: str
    what: str


@dataclass
class Spans:
    """Stretches of time in which something was so; the last one may still be open."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    _open: float | None = None

    def begin(self, at: float) -> None:
        """It is so from now on."""
        if self._open is None:
            self._open = at

    def end(self, at: float) -> None:
        """It is over."""
        if self._open is not None:
            self.spans.append((self._open, at))
            self._open = None

    def touch(self, start: float, end: float) -> bool:
        """Return whether it was so at any time from `start` to `end`."""
        if self._open is not None and self._open <= end:
            return True
        return any(first <= end and start <= last for first, last in self.spans)


@dataclass
class History:
    """Everything that happened so far; each method may be called by any thread."""

    executions: dict[str, dict[str, list[Execution]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    server_ends: dict[str, float] = field(default_factory=dict)  # the last line of each
    ends: list[End] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    short: Spans = field(default_factory=Spans)  # the disk was being filled
    stopped: Spans = field(default_factory=Spans)  # SIGSTOP
    astray: Spans = field(default_factory=Spans)  # the daemon's clock was not ours
    over: dict[str, float] = field(default_factory=dict)  # when each job was seen published
    begun: int = 0
    late: list[Violation] = field(default_factory=list)
    _open: dict[tuple[str, int], Execution] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is added within."""
        with self._lock:
            yield

    # -- the server's journal ---------------------------------------------------------

    def take(self, line: Json) -> None:
        """Take one line of the server's journal."""
        with self._lock:
            self.server_ends[line["server"]] = line["at"]
            if line["what"] == "begun":
                self._begin(line)
            elif line["what"] == "ended":
                execution = self._open.pop((line["server"], line["n"]), None)
                if execution is not None:
                    execution.ended, execution.kind = line["at"], line["kind"]
                    execution.status = line["status"]

    def _begin(self, line: Json) -> None:
        execution = Execution(line["server"], line["text"], line["at"])
        self.begun += 1
        self._open[line["server"], line["n"]] = execution
        job_id = job_of(line["id"])
        over = self.over.get(job_id)
        if over is None:
            self.executions[job_id][line["id"]].append(execution)
        elif execution.begun > over + _ON_THE_WAY_S:
            what = f"{line['id']} ({line['text'][:60]}) ran {execution.begun - over:.1f} s after"
            self.late.append(Violation("ran_after_end", f"{what} its job's end", execution.begun))

    def runs(self, job_id: str, request_id: str) -> list[Execution]:
        """The executions of one request, by the time of their beginning."""
        with self._lock:
            return list(self.executions.get(job_id, {}).get(request_id, ()))

    def close_job(self, job_id: str, at: float) -> None:
        """The job was published, seen at that time; its executions are forgotten."""
        with self._lock:
            self.over.setdefault(job_id, at)
            self.executions.pop(job_id, None)

    # -- what explains a second execution -----------------------------------------------

    def explained(self, first: Execution, second: Execution, rules: "Rules") -> bool:
        """Return whether an answered request may have been run again.

        It may when the daemon ended before the answer was committed, when the server ended
        before the answer was read, or when the answer came too late for the daemon.
        """
        answered = first.ended or first.begun
        if answered - first.begun >= rules.request_timeout_s - 1:
            return True
        last = self.server_ends.get(first.server, 0.0)
        if first.server != second.server and last - answered <= _ON_THE_WAY_S:
            return True
        slack_s = rules.commit_interval_s + rules.slack_s
        for end in self.ends:
            if not first.begun <= end.at <= second.begun + _ON_THE_WAY_S:
                continue
            since = max(answered, self._busy_until(answered, end.at))
            if end.at - since <= slack_s:
                return True
        return self.stopped.touch(first.begun, answered + _ON_THE_WAY_S)

    def _busy_until(self, start: float, end: float) -> float:
        """Until when a full disk or a stop kept a commit from being made."""
        for spans in (self.short, self.stopped):
            if spans.touch(start, end):
                return end
        return start

    def ordered(self, name: str, what: str, start: float, end: float) -> bool:
        """Return whether an order for a job was given in that time."""
        return any(
            order.what == what and order.name in {name, "ALL"} and start <= order.at <= end
            for order in self.orders
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What the daemon's configuration and its documents promise; seconds.

    `slack_s` is what a loaded machine may add to a commit's interval.
    """

    request_timeout_s: float = 10.0
    commit_interval_s: float = 0.2
    max_attempts: int = 3
    slack_s: float = 8.0
    stop_s: float = 30.0


def job_of(request_id: str) -> str:
    """The job's id in a request's id, which is batch_req_JOB_LINE."""
    return request_id.removeprefix("batch_req_").rpartition("_")[0]


class Journal:
    """The server's journal, read as it grows."""

    def __init__(self, path: Path, history: History) -> None:
        """Begin at its start; it need not exist yet."""
        self._path, self._history, self._offset = path, history, 0
        self._lock = threading.Lock()

    def catch_up(self) -> None:
        """Take every whole line that was written since."""
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
            except FileNotFoundError:
                return
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                self._history.take(json.loads(line))
