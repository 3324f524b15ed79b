"""The suspects of engine deaths: which requests were in flight, and what that proves.

Purpose: the one owner of the bisection: its state, what of it is saved, and the doubt
about the engine when every request seems to be poison.
Invariants: a death is charged to no request but one that has caused it alone, several
times; the bisection's newest state is on the disk before its next group runs.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from inbox_daemon.contract.records import JobRecord
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.run.poison import Bisection, Suspect

log = logging.getLogger(__name__)

# The key of its stored form in the ledger.
STATE = "bisection"
# The number of requests in a row under which an engine may die; beyond, it is doubted.
TRUSTED_POISON = 3
DOUBT_BASE_S = 10.0
DOUBT_CAP_S = 600.0

SetAsidePoison = Callable[[RunningJob, int, int], None]
CountRefused = Callable[[list[RunningJob]], Counter[str]]


class Suspects:
    """The requests of an engine that died, from its death to their outcomes."""

    def __init__(self, jobs: ActiveJobs, stored: bytes | None, set_aside: SetAsidePoison) -> None:
        """Go on with the bisection that was `stored`.

        `set_aside` makes a dead letter of a job's request, by ordinal, after a number of deaths.
        """
        self._jobs, self._set_aside = jobs, set_aside
        self._bisection = Bisection.load(stored)
        self.dirty = False
        # Those that have come back from an engine that died, until all of its flights have.
        self.lost: list[Suspect] = []
        self.deaths = 0
        self.hold_until = 0.0
        self.problem: str | None = None
        # Under which requests the engine has died alone: before the last answer, and since;
        # and how many of the latter turned out to be poison.
        self._known, self._unanswered = set(self._bisection.deaths), set[Suspect]()
        self._poisonous = 0

    @property
    def bisecting(self) -> bool:
        """Whether suspects are to run alone now."""
        return bool(self._bisection)

    @property
    def group(self) -> list[Suspect]:
        """The suspects that may run now."""
        return list(self._bisection.group)

    def take_state(self) -> dict[str, bytes | None]:
        """Hand over the bisection's stored form for the next commit."""
        self.dirty = False
        return {STATE: self._bisection.dump()}

    def restore(self) -> None:
        """Forget the suspects that are over, and put off the rest, at a start of the daemon."""
        runs = {run.record.id: run for run in self._jobs.runs()}
        self._bisection.keep(
            {
                (job_id, line)
                for job_id, line in self._bisection.suspects
                if job_id in runs and runs[job_id].is_open(line)
            }
        )
        self._put_off()

    # -- deaths ---------------------------------------------------------------------

    def engine_died(self) -> None:
        """All flights of a dead engine have come back: narrow down which one caused it."""
        self.deaths += 1
        lost, self.lost = self.lost, []
        if len(lost) == 1 and not {*lost} & (self._known | self._unanswered):
            self._unanswered.update(lost)
            self._doubt_engine(len(self._unanswered))
        poison = self._bisection.died(lost, self._jobs.clock.read().reckoned)
        self.dirty = True
        log.warning("engine_died", extra={"in_flight": len(lost), "poison": len(poison)})
        for (job_id, line), deaths in poison.items():
            run = self._jobs.run_of(job_id)
            if run is not None and run.is_open(line):
                ordinal = run.input.ordinal_of(line)
                run.marks.take_suspect(ordinal)
                self._set_aside(run, ordinal, deaths)
                self._poisonous += (job_id, line) in self._unanswered
                self._doubt_engine(self._poisonous)
        self._put_off()

    def _put_off(self) -> None:
        """Let those wait that the bisection has put off."""
        for job_id, line in self._bisection.put_off:
            run = self._jobs.run_of(job_id)
            if run is not None and run.is_open(line):
                run.marks.put_off(run.input.ordinal_of(line))

    def _doubt_engine(self, streak: int) -> None:
        """Slow down when every request seems to be poison: then the fault is the engine's.

        `streak` counts those under which it died alone, or that are poison, without an
        answer of any other since.  Without this a faulty GPU would turn a whole job into
        dead letters.
        """
        excess = streak - TRUSTED_POISON
        if excess <= 0:
            return
        pause_s = min(DOUBT_BASE_S * 2 ** min(excess, 10), DOUBT_CAP_S)
        self.hold_until = time.monotonic() + pause_s
        self.problem = (
            f"the engine died under each of the last {streak} requests that ran "
            f"alone: look at the engine and the GPU; the next one is tried in {pause_s:.0f} s"
        )

    # -- answers --------------------------------------------------------------------

    def answered(self, suspect: Suspect) -> None:
        """Take a request that was answered out of the bisection: it kills no engine."""
        if self._bisection:
            self._bisection.answered(suspect, self._jobs.clock.read().reckoned)
            self._note_emptied()

    def succeeded(self, launched_at: float) -> None:
        """Trust the engine again after a result; `launched_at` in monotonic seconds."""
        if self._unanswered:
            self._known, self._unanswered = set(self._bisection.deaths), set()
            self._poisonous = 0
        if launched_at >= self.hold_until:
            self.problem = None

    def give_back(self, run: RunningJob, ordinal: int) -> None:
        """Put a request back that was sent alone for nothing, among the suspects if it is one."""
        suspected = (run.record.id, run.input.line_of(ordinal)) in self._bisection.suspects
        run.marks.abandon(ordinal, math.inf if suspected else time.monotonic())

    def forget(self, suspect: Suspect) -> None:
        """Take a request that is over out of the bisection."""
        if suspect in self._bisection.deaths or self._bisection:
            self._bisection.forget(suspect)
            self._note_emptied()

    def _note_emptied(self) -> None:
        """Save the end of a bisection; what is left of one need not be saved for an answer."""
        self.dirty = self.dirty or not self._bisection

    # -- turns ----------------------------------------------------------------------

    def postpone_waiting(self, may_run: Callable[[JobRecord], bool]) -> None:
        """Put off the suspects of a job that waits, so that no other job waits for them."""
        for job_id in {job_id for group in self._bisection.groups for job_id, _ in group}:
            run = self._jobs.run_of(job_id)
            if run is not None and not may_run(run.record) and not run.in_flight:
                self._bisection.postpone(job_id)
                self.dirty = True
                self._put_off()

    def left_to_try(self, runs: list[RunningJob], refused: CountRefused) -> RunningJob | None:
        """Return a job that has nothing left but requests that the bisection has put off.

        `refused` counts by job those that a server refuses: they may wait without end, so
        the suspects do not wait for them.  It is called only where some were put off.
        """
        if not self._bisection.put_off:
            return None
        waiting = Counter(job_id for job_id, _ in self._bisection.put_off)
        refusals = refused(runs)
        for run in runs:
            job_id = run.record.id
            if 0 < waiting[job_id] == run.left - refusals[job_id]:
                return run
        return None

    def recall(self, run: RunningJob) -> None:
        """Try the requests of that job again that were put off; nothing else may fly."""
        self._bisection.recall(run.record.id)
        self.dirty = True
