"""Health: what is wrong, what is only slow, and what the worker does.

Purpose: the words and the verdicts of the status, from the facts alone.
Invariants: pure; whatever keeps work from going on gives a reason in words, and the
reason that the worker shows is the one that the runner acts on.
"""

from inbox_daemon.contract.health_documents import WorkerState
from inbox_daemon.contract.hindrances import Hindrance, HindranceCode
from inbox_daemon.contract.job_documents import counted
from inbox_daemon.engine.base import EngineState
from inbox_daemon.report.facts import Facts

RECENT_DEATH_S = 600.0
# So many entries of the spool that cannot be dealt with are named.
MAX_TROUBLES = 10

# What an operator has to mend; the rest passes by itself or was asked for.
_ERRORS = frozenset(
    {
        HindranceCode.ENGINE_BACKOFF,
        HindranceCode.SERVER_REFUSES,
        HindranceCode.ENGINE_DOUBTED,
    }
)
_UNHEALTHY = _ERRORS | {HindranceCode.DISK_SHORT, HindranceCode.JOBS_HELD}
# The engine loads whether there is work or not; without work that hinders nothing.
_LOADING = frozenset({HindranceCode.ENGINE_STARTING, HindranceCode.ENGINE_STOPPED})
# Requests run all the same, or will in a moment.
_AT_WORK = frozenset(
    {HindranceCode.BISECTION, HindranceCode.ENGINE_LOST, HindranceCode.ENGINE_UNPROVEN}
)


def unhealthy(facts: Facts) -> list[str]:
    """Return what keeps the service from working, in words; empty when nothing does."""
    reasons: list[str] = []
    if facts.stopping:
        reasons.append("the daemon is stopping, or was stopped")
    hindrance = facts.run.hindrance
    if hindrance and hindrance.code in _UNHEALTHY:
        reasons.append(hindrance.words)
    elif facts.engine.state is EngineState.BACKOFF:  # behind another hindrance
        reasons.append(f"the engine does not run: {facts.engine.last_error or 'no reason known'}")
    reasons += [text for text in (facts.run.problem, facts.intake.problem) if text]
    if facts.gpu is not None and not facts.gpu.healthy:
        reasons.append(facts.gpu.problem or "the GPU does not answer")
    return list(dict.fromkeys(reasons))


def degraded(facts: Facts) -> list[str]:
    """Return what slows the service or deserves a look, in words."""
    reasons: list[str] = []
    starting = facts.engine.state in {EngineState.STARTING, EngineState.STOPPED}
    if starting and not facts.stopping:
        reasons.append("the engine is starting")
    if facts.disk and (count := len(facts.disk.quarantined)):
        lie = "lies" if count == 1 else "lie"
        reasons.append(f"{counted(count, 'thing')} {lie} in quarantine/: look at the log")
    troubles = facts.disk.troubles if facts.disk else ()
    reasons += troubles[:MAX_TROUBLES]
    if len(troubles) > MAX_TROUBLES:
        more = counted(len(troubles) - MAX_TROUBLES, "more thing")
        reasons.append(f"{more} in the spool cannot be dealt with: look at the log")
    reasons += facts.governor.reasons
    reasons += [hindrance.words for hindrance in facts.run.waiting.values()]
    reasons += [words for words in (facts.intake.hints_missing, facts.clock_doubt) if words]
    if facts.run.bisecting:
        reasons.append("the engine died; the requests that were running are tried in groups")
    if facts.died_s_ago is not None and facts.died_s_ago < RECENT_DEATH_S:
        reasons.append("the engine died in the last 10 minutes and was restarted")
    return reasons


def worker_state(facts: Facts) -> tuple[WorkerState, Hindrance | None]:
    """Return what the worker does, and what keeps it from sending."""
    hindrance, active = facts.run.hindrance, bool(facts.queue.jobs)
    if hindrance is None and facts.run.problem:  # a trial runs, between two pauses
        hindrance = Hindrance(HindranceCode.SERVER_REFUSES, facts.run.problem)
    if hindrance is None or hindrance.code in _AT_WORK:
        return ("processing" if active else "idle"), hindrance
    if hindrance.code in _LOADING and not active:
        return "idle", None
    return ("error" if hindrance.code in _ERRORS else "paused"), hindrance


def at_work(facts: Facts) -> bool:
    """Return whether some job could go on, and nothing known keeps it from that."""
    active = any(not job.paused for job in facts.queue.jobs)
    return active and worker_state(facts)[0] == "processing"


def headline(facts: Facts) -> str:
    """Return one line for systemd's STATUS and for people."""
    state, hindrance = worker_state(facts)
    jobs = counted(facts.queue.active, "job")
    requests = counted(facts.queue.open_requests, "request")
    words = f"{state}: {jobs}, {requests} open, engine {facts.engine.state}"
    return f"{words}; {hindrance.words}" if hindrance else words
