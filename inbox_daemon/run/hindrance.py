"""Why nothing is sent: the one function that answers it, for all and for one job.

Purpose: the reason that the runner acts on and the status shows, found in one place.
Invariants: nothing is changed here; the gravest reason comes first; a job that is being
ended needs no engine, so only the disk can hold it up.
"""

import time

from inbox_daemon.contract.hindrances import Hindrance, HindranceCode
from inbox_daemon.contract.names import ALL
from inbox_daemon.contract.records import JobRecord
from inbox_daemon.engine.base import Engine, EngineInfo, EngineState
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.jobs.active import ActiveEntry, ActiveJobs
from inbox_daemon.jobs.commit import GroupCommit
from inbox_daemon.run.arrivals import Arrivals
from inbox_daemon.run.attempts import Attempts
from inbox_daemon.run.lifecycle import Lifecycle
from inbox_daemon.run.suspects import Suspects

_NOT_READY = {
    EngineState.STOPPED: (HindranceCode.ENGINE_STOPPED, "the engine is not running yet"),
    EngineState.STARTING: (HindranceCode.ENGINE_STARTING, "the engine is loading"),
}
# Where each active job has a reason of its own, the one that needs the owner most is shown.
_GRAVEST = (
    HindranceCode.JOBS_HELD,
    HindranceCode.MODEL_NOT_SERVED,
    HindranceCode.JOBS_PAUSED,
)


class Hindrances:
    """Knows the parts that may keep requests back, and asks them."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it asks
        self,
        jobs: ActiveJobs,
        engine: Engine,
        governor: Governor,
        arrivals: Arrivals,
        suspects: Suspects,
        attempts: Attempts,
        commit: GroupCommit,
        lifecycle: Lifecycle,
    ) -> None:
        """Ask these parts; `draining` and `disk_short` are set from outside."""
        self._jobs, self._engine, self._governor = jobs, engine, governor
        self._arrivals, self._suspects, self._attempts = arrivals, suspects, attempts
        self._commit, self._lifecycle = commit, lifecycle
        self.draining = False
        # Why the disk is too full to go on.
        self.disk_short: str | None = None

    def of_all(self) -> Hindrance | None:  # noqa: C901, PLR0911 - one list, in order
        """Return why nothing is sent now, the gravest reason first; None while requests may be.

        While suspects of an engine's death run (BISECTION), nothing but them is sent.
        """
        code, now, info = HindranceCode, time.monotonic(), self._engine.info
        if self.draining:
            return Hindrance(code.DRAINING, "the daemon is stopping: what runs may finish")
        if short := self.disk_short or self._commit.disk_full:
            return Hindrance(code.DISK_SHORT, short)
        if info.state is EngineState.BACKOFF:
            return Hindrance(code.ENGINE_BACKOFF, _backoff_words(info))
        if self._arrivals.hold_until > now:
            return Hindrance(code.SERVER_REFUSES, self._arrivals.problem or "")
        if self._suspects.hold_until > now:
            return Hindrance(code.ENGINE_DOUBTED, self._suspects.problem or "")
        if self._governor.closed:
            return Hindrance(code.GOVERNOR_CLOSED, self._governor.reason or "")
        if ALL in self._jobs.paused:
            words = "all jobs were paused; `inbox-daemon resume` lets them go on"
            return Hindrance(code.ALL_PAUSED, words)
        if waiting := self._of_each():
            return waiting
        if info.state is not EngineState.READY:
            return Hindrance(*_NOT_READY[info.state])
        # An engine's flights must all have come back before the next one gets any, and
        # which suspects are tried next must be on the disk first.
        if self._suspects.lost or self._attempts.stale or self._commit.further_unsaved:
            words = "the engine died; what was running is being sorted out"
            return Hindrance(code.ENGINE_LOST, words)
        if not info.proven:
            words = "the server is up but has not answered a request yet; one is tried alone"
            return Hindrance(code.ENGINE_UNPROVEN, words)
        if self._suspects.bisecting:
            words = "the engine died; the requests that were running are tried in groups"
            return Hindrance(code.BISECTION, words)
        return None

    def of_job(self, entry: ActiveEntry) -> Hindrance | None:
        """Return why one job waits while others may go on; None where nothing holds it up."""
        code, record = HindranceCode, entry.record
        if held := self._lifecycle.held.get(record.id):
            return Hindrance(code.JOBS_HELD, held.words)
        if entry.run is not None and entry.run.unwritten is not None:
            return Hindrance(code.JOBS_HELD, entry.run.unwritten)
        if record.ending is not None or entry.is_complete():
            return None
        if self._jobs.is_paused(record):
            words = "each job was paused; `inbox-daemon resume NAME` lets one go on"
            return Hindrance(code.JOBS_PAUSED, words)
        if not self._engine.info.serves(record.model):
            return Hindrance(code.MODEL_NOT_SERVED, _unserved_words(record, self._engine.info))
        return None

    def of_jobs(self) -> dict[str, Hindrance]:
        """Return why each job waits that waits for the disk or for its model, by id."""
        found = ((job_id, self.of_job(entry)) for job_id, entry in self._jobs.entries.items())
        return {
            job_id: hindrance
            for job_id, hindrance in found
            if hindrance is not None and hindrance.code is not HindranceCode.JOBS_PAUSED
        }

    def _of_each(self) -> Hindrance | None:
        """Return the gravest of the reasons of the single jobs, if each has one."""
        found: dict[HindranceCode, Hindrance] = {}
        for entry in self._jobs.entries.values():
            hindrance = self.of_job(entry)
            if hindrance is not None:
                found.setdefault(hindrance.code, hindrance)
            elif entry.record.ending is None:
                return None
        return next((found[code] for code in _GRAVEST if code in found), None)


def _backoff_words(info: EngineInfo) -> str:
    again = "" if info.retry_in_s is None else f"; it is tried again in {info.retry_in_s:.0f} s"
    return f"the engine does not run: {info.last_error or 'no reason known'}{again}"


def _unserved_words(record: JobRecord, info: EngineInfo) -> str:
    served = ", ".join(sorted(info.known_models))
    return (
        f"{record.name} waits for the model {record.model}, and {served} is served: serve it "
        f"again, or `inbox-daemon job {record.name} --model NAME`, or cancel the job"
    )
