"""What must be true of a job, of its requests and of every file that was sent.

Purpose: hold what the daemon published or refused to what was sent, ordered and executed.
Invariants: nothing is taken from the daemon but what it shows to any reader; each truth has
a code, and tests/crash/test_soak_witness.py plants a violation of each.
Known limit: an innocent request may be held for poison when the engine died under it alone
again and again by chance (DESIGN.md, the bisection); three executions without an end are
taken for that, and counted.
"""

import json
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from inbox_daemon.contract.documents import JobStatus
from inbox_daemon.publish.verify import verify_published
from job_files import Json, Outputs, check_outputs
from soak.history import Execution, History, Rules, Violation
from soak.jobs import ALSO, VALID, SentJob, is_deadly

# Refusals that say nothing about the file: it is sent again.
FOR_NOW = frozenset({"queue_full", "too_many_queued_requests"})
# Ways of sending that a full disk or a slow machine may leave incomplete for too long.
MAY_BE_CUT = frozenset({"marker first", "slow", "cut"})
_NOT_THE_REQUESTS = frozenset({401, 403, 407, 408, 429})
_BY_CHANCE = 3
_EARLY_S = 1.0


def judge_job(
    job: SentJob, folder: Path, history: History, rules: Rules, now: float, figures: Counter[str]
) -> list[Violation]:
    """Hold a folder with results to everything that is known of its job.

    `now` is when it was seen, in monotonic seconds; `figures` counts what is no violation.
    """
    status: Json = json.loads((folder / "status.json").read_bytes())
    where = f"{job.name} ({status.get('id')})"
    try:
        outputs = check_outputs(job.lines, folder, status["status"])
    except Exception as error:  # noqa: BLE001 - whatever a broken folder raises is the finding
        code = traceback.extract_tb(error.__traceback__)[-1].line
        return [Violation("broken_output", f"{where}: {error!r:.400} at {code}", now)]
    found = [
        *_judge_status(job, status, history, rules, now),
        *_judge_proof(folder, status, now),
    ]
    for custom_id, line in [*outputs.results.items(), *outputs.errors.items()]:
        text, runs = job.texts[custom_id], history.runs(status["id"], line["id"])
        reasons = _judge_request(job, text, line, runs, rules, figures, history)
        reasons += _judge_repeats(runs, history, rules, figures)
        found += [Violation(code, f"{where} {custom_id}: {what}", now) for code, what in reasons]
    _count(outputs, figures)
    return found


def _count(outputs: Outputs, figures: Counter[str]) -> None:
    figures["requests"] += len(outputs.results) + len(outputs.errors)
    figures["results"] += len(outputs.results)
    for reason in outputs.reasons().values():
        figures[f"dead letters {reason}"] += 1


def _judge_status(
    job: SentJob, status: Json, history: History, rules: Rules, now: float
) -> list[Violation]:
    """The job's status against what was sent and ordered."""
    found, where = [], f"{job.name} ({status['id']})"
    first = min(job.drops, default=now)
    if status["status"] == "cancelled" and not history.ordered(job.name, "cancel", first - 60, now):
        found.append(Violation("unordered_end", f"{where} was cancelled without an order", now))
    if status["status"] == "expired":
        found += _judge_expiry(job, where, history, first, now)
    if (status["metadata"] or {}) != job.options.get("metadata", {}):
        what = f"{where} has the metadata {status['metadata']}, not {job.options.get('metadata')}"
        found.append(Violation("options_lost", what, now))
    return found


def _judge_expiry(
    job: SentJob, where: str, history: History, first: float, now: float
) -> list[Violation]:
    if job.expires_in_s is None:
        return [Violation("unordered_end", f"{where} expired without an expiry", now)]
    if now - first >= job.expires_in_s - _EARLY_S:
        return []
    # What the clock did while no daemon ran is not to be known.
    if any(first <= end.at <= now for end in history.ends) and history.astray.touch(first, now):
        return []
    what = f"{where} expired after {now - first:.1f} s of {job.expires_in_s:g}"
    return [Violation("expired_early", what, now)]


def _judge_proof(folder: Path, status: Json, now: float) -> list[Violation]:
    """The product's own proof must hold too."""
    faults = verify_published(folder, JobStatus.model_validate(status), None).faults
    return [Violation("not_verified", f"{status['name']}: {fault}", now) for fault in faults[:3]]


def _judge_request(  # noqa: PLR0917 - likewise
    job: SentJob,
    text: str,
    line: Json,
    runs: list[Execution],
    rules: Rules,
    figures: Counter[str],
    history: History,
) -> list[tuple[str, str]]:
    """One outcome: an answer that the server gave to this request, or an error with a reason."""
    figures["executions"] += len(runs)
    others = [run.text for run in runs if run.text != text[: len(run.text)] or not run.text]
    if others:
        return [("wrong_request", f"the server was sent {others[0]!r} for {text!r}")]
    if line["error"] is not None:
        return _judge_error(job, text, line["error"]["code"], runs, rules, figures, history)
    said = line["response"]["body"]["choices"][0]["message"]["content"]
    if said != f"echo: {text}":
        return [("wrong_answer", f"{text!r} was answered with {said[:200]!r}")]
    if not any(run.kind == "ok" for run in runs):
        return [("invented_answer", f"no server has answered {text!r}")]
    return []


def _judge_error(  # noqa: PLR0911, PLR0917 - each code has its own rule
    job: SentJob,
    text: str,
    code: str,
    runs: list[Execution],
    rules: Rules,
    figures: Counter[str],
    history: History,
) -> list[tuple[str, str]]:
    what = f"{code} after {[run.kind or 'no end' for run in runs]}: {text!r}"
    unended = sum(run.ended is None for run in runs)
    if code in {"cancelled", "expired"}:
        return []  # the job's status is judged
    if code == "invalid_request":
        refused = [run.status for run in runs if run.kind == "refused"]
        if any(status not in _NOT_THE_REQUESTS for status in refused):
            return []
        return [("unfounded_error", what)]
    if code == "poison":
        if is_deadly(text):
            return []
        figures["innocents held for poison by chance"] += unended >= _BY_CHANCE
        return [] if unended >= _BY_CHANCE else [("innocent_poison", what)]
    attempts = min(job.max_attempts or rules.max_attempts, len(runs) + 1)
    if code in {"max_attempts", "timeout"}:
        charged = [run for run in runs if run.kind != "ok" or _too_late(run, rules, history)]
        wanted = job.max_attempts or rules.max_attempts
        if len(charged) >= wanted:
            return []
        return [("unfounded_error", f"{len(charged)} of {wanted} failures, {what}")]
    return [("unfounded_error", f"{what}, attempts {attempts}")]


def _too_late(run: Execution, rules: Rules, history: History) -> bool:
    """Whether an answer may not have been read in time."""
    ended = run.ended or run.begun
    return ended - run.begun >= rules.request_timeout_s - 1 or history.stopped.touch(
        run.begun, ended + 3
    )


def _judge_repeats(
    runs: list[Execution], history: History, rules: Rules, figures: Counter[str]
) -> list[tuple[str, str]]:
    """An answered request runs again only where the answer may have been lost."""
    found = []
    for number, run in enumerate(runs):
        if run.kind != "ok":
            continue
        for later in runs[number + 1 :]:
            figures["executions after an answer"] += 1
            if not history.explained(run, later, rules):
                gap_s = later.begun - (run.ended or run.begun)
                found.append(
                    ("ran_again", f"{run.text!r} ran again {gap_s:.1f} s after its answer")
                )
    return found


# -- files ---------------------------------------------------------------------------------


def judge_answer(job: SentJob, job_id: str, now: float) -> list[Violation]:
    """Note that a folder with results was published for a file; it must be the only one."""
    job.answers.append(job_id)
    if len(job.answers) > 1:
        what = f"{job.name} was answered by {job.answers}"
        return [Violation("answered_twice", what, now)]
    if job.kind != VALID:
        return [Violation("wrong_refusal", f"{job.name} had to be refused as {job.kind}", now)]
    return []


def judge_refusal(job: SentJob, code: str, now: float) -> list[Violation]:
    """Note a refusal of a file; it must be the one that its content asks for."""
    job.refusals.append(code)
    if code in FOR_NOW or (code == "truncated" and job.way in MAY_BE_CUT):
        job.to_send = not job.answers
        return []
    job.final = True
    if code in {job.kind, ALSO.get(job.kind)}:
        return []
    what = f"{job.name}, sent by {job.way}, was refused as {code}, not {job.kind}"
    return [Violation("wrong_refusal", what, now)]


def judge_end(jobs: Iterable[SentJob], now: float) -> list[Violation]:
    """Every file that was sent has its answer."""
    return [
        Violation("lost", f"{job.name} ({job.kind}, by {job.way}) has no answer", now)
        for job in jobs
        if job.drops and not job.final
    ]
