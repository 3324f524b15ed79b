"""Documents: what a sender reads is complete, true and valid by its schema."""

from functools import cache
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import JOB_ID, job_record
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import MAX_EXPIRES_IN_S, Document, Fault, JobOptions, Usage
from inbox_daemon.contract.job_documents import pretty
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.contract.records import DeadReason, Progress
from inbox_daemon.contract.states import BatchStatus, JobState

NOW = 5000.7
FAULT = Fault(code="invalid_json", message="it is no JSON", line=3)
FULL = Fault(code="queue_full", message="the queue is full")


@cache
def schema(name: str) -> jsonschema.Draft202012Validator:
    """The schema of one document."""
    return jsonschema.Draft202012Validator(json_schema(name))


def valid(name: str, document: Document) -> dict[str, Any]:
    """The document as it is written, after it was held to its schema."""
    found: dict[str, Any] = orjson.loads(pretty(document))
    schema(name).validate(found)
    return found


def finished(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    """The status of a finished job of three requests, two of them answered."""
    known: dict[str, Any] = {
        "requests": 3,
        "completed": 2,
        "failed": 1,
        "status": BatchStatus.COMPLETED,
        "finished_at": NOW,
    }
    record = job_record(**(known | fields))
    return valid("job-status", job_documents.job_status(record, errors=True, retry=True))


# -- finished -----------------------------------------------------------------------


def test_a_finished_job_is_a_batch_of_openai() -> None:
    """A client that knows OpenAI's Batch object reads the end of a job from it."""
    found = finished()
    assert (found["object"], found["status"], found["completed_at"]) == ("batch", "completed", 5000)
    assert found["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (found["output_file_id"], found["error_file_id"]) == ("output.jsonl", "errors.jsonl")
    assert found["input_file_id"] == "job.jsonl"


def test_a_finished_job_tells_what_to_do_next() -> None:
    """The sentence counts and names the files, and the file that runs the rest again."""
    assert finished()["message"] == (
        "2 of 3 requests were answered; 1 was not, see errors.jsonl; "
        "drop retry.jsonl to run it again"
    )


def test_files_that_are_not_there_are_not_named() -> None:
    """A job in which all went well has neither errors nor retries."""
    record = job_record(completed=1, status=BatchStatus.COMPLETED, finished_at=NOW)
    found = valid("job-status", job_documents.job_status(record, errors=False, retry=False))
    assert (found["error_file_id"], found["retry_file"]) == (None, None)
    assert found["message"] == "1 of 1 request was answered"


@pytest.mark.parametrize(
    "status", [BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.EXPIRED]
)
def test_only_the_end_that_came_has_its_time(status: BatchStatus) -> None:
    """Of completed_at, cancelled_at and expired_at exactly one is set."""
    found = finished(status=status)
    assert found["status"] == status.value
    times = {key for key in ("completed_at", "cancelled_at", "expired_at") if found[key]}
    assert times == {f"{status.value}_at"}


def test_energy_is_reported_with_its_tokens() -> None:
    """Joules in all and for 1,000 output tokens; null where no sensor or no token tells."""
    usage = Usage(output_tokens=4000)
    told = finished(energy_j=1234.5, usage=usage)
    assert (told["energy_j"], told["energy_j_per_1000_output_tokens"]) == (1234.5, 308.625)
    told = finished(usage=usage)
    assert (told["energy_j"], told["energy_j_per_1000_output_tokens"]) == (None, None)
    assert finished(energy_j=5.0)["energy_j_per_1000_output_tokens"] is None


def test_energy_of_a_running_job_is_that_of_its_checkpoint() -> None:
    """Joules and tokens that were committed together are reported together."""
    progress = Progress(completed=1, output_tokens=500, energy_j=20.0)
    shown = job_documents.active_status(job_record(requests=9), progress, JobState.RUNNING)
    assert (shown.energy_j, shown.energy_j_per_1000_output_tokens) == (20.0, 40.0)


def test_a_cancelled_job_tells_when_that_was_asked_for() -> None:
    """OpenAI's Batch has the time of the order beside that of the end; one that expired none."""
    cancelled = {"status": BatchStatus.CANCELLED, "ending": DeadReason.CANCELLED, "ending_at": 9.5}
    found = finished(**cancelled)
    assert (found["cancelling_at"], found["cancelled_at"]) == (9, 5000)
    expired = finished(status=BatchStatus.EXPIRED, ending=DeadReason.EXPIRED, ending_at=9.5)
    assert (expired["cancelling_at"], expired["expired_at"]) == (None, 5000)


def test_a_job_echoes_what_its_sender_asked_for() -> None:
    """Metadata, priority, expiry and origin come back in the status."""
    found = finished(
        metadata={"k": "v"}, priority="high", expires_at=9000.0, redrive_of=JOB_ID, model="m"
    )
    assert (found["metadata"], found["priority"], found["expires_at"]) == ({"k": "v"}, "high", 9000)
    assert (found["redrive_of"], found["model"]) == (JOB_ID, "m")


def test_the_longest_expiry_can_be_written() -> None:
    """An expiry that the options allow is a time that the status can show."""
    options = JobOptions(expires_in_s=MAX_EXPIRES_IN_S)
    assert options.expires_in_s is not None
    assert finished(expires_at=2e9 + options.expires_in_s)["expires_at"] == 2_315_360_000
    with pytest.raises(ValueError, match="less than or equal"):
        JobOptions.model_validate({"expires_in_s": 1e300})


# -- active -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "ending", "word"),
    [
        (JobState.QUEUED, None, "validating"),
        (JobState.RUNNING, None, "in_progress"),
        (JobState.RUNNING, DeadReason.CANCELLED, "cancelling"),
        (JobState.QUEUED, DeadReason.CANCELLED, "cancelling"),
    ],
)
def test_an_active_job_has_the_word_of_its_state(
    state: JobState, ending: DeadReason | None, word: str
) -> None:
    """Queued, running and ending jobs have the words of OpenAI's Batch."""
    record = job_record(requests=9, ending=ending)
    progress = Progress(completed=2, failed=1)
    found = valid("job-status", job_documents.active_status(record, progress, state))
    assert found["status"] == word
    assert found["request_counts"] == {"total": 9, "completed": 2, "failed": 1}


def test_a_redelivery_says_that_nothing_runs_again() -> None:
    """The answer has the job's figures, and names no file that was collected."""
    record = job_record(
        completed=1,
        status=BatchStatus.COMPLETED,
        finished_at=NOW,
        checksums={"output.jsonl": "0" * 64},
    )
    found = valid("job-status", job_documents.redelivered_status(record, 6000.0))
    assert (found["id"], found["redelivered_at"], found["status"]) == (JOB_ID, 6000, "completed")
    assert (found["output_file_id"], found["error_file_id"], found["retry_file"]) == (None,) * 3
    assert found["checksums"] is None
    assert "another name" in found["message"]


# -- refused ------------------------------------------------------------------------


def test_a_refusal_lists_its_faults_and_the_first_leads() -> None:
    """Code and sentence are those of the first fault, with its line and how many more."""
    why = job_documents.reason(JOB_ID, "job", [FAULT, FULL], NOW, count=7)
    found = valid("reason", why)
    assert (found["code"], found["fault_count"], len(found["faults"])) == ("invalid_json", 7, 2)
    assert found["message"] == "the file was refused: line 3: it is no JSON (and 6 more)"


@pytest.mark.parametrize(
    ("faults", "retryable"), [([FULL], True), ([FAULT], False), ([FULL, FAULT], False)]
)
def test_a_refusal_is_retryable_only_if_all_of_it_is(faults: list[Fault], retryable: bool) -> None:  # noqa: FBT001 - a table
    """The same bytes are worth sending again only if nothing in them is wrong."""
    assert job_documents.reason(JOB_ID, "job", faults, NOW).retryable == retryable


def test_a_refusal_lists_a_hundred_faults_at_most() -> None:
    """The list ends after a hundred faults, and the count is that of all."""
    why = job_documents.reason(JOB_ID, "job", [FAULT] * 300, NOW, count=300)
    assert (len(why.faults), why.fault_count) == (100, 300)


def test_a_refused_order_is_called_an_order() -> None:
    """The reason beside a refused control file does not speak of a job's file."""
    why = job_documents.reason(JOB_ID, "job.pause", [FAULT], NOW)
    assert why.message.startswith("the order was refused: ")


def test_the_progress_of_one_request_is_in_the_singular() -> None:
    """A job of one request, or with one answer, is spoken of as one."""
    assert job_documents.answered_so_far(0, 1) == "0 of 1 request is answered"
    assert job_documents.answered_so_far(1, 2000) == "1 of 2,000 requests is answered"
    assert job_documents.answered_so_far(2, 2000) == "2 of 2,000 requests are answered"


def test_a_refusal_is_a_failed_batch_in_the_outbox() -> None:
    """The web app finds the refusal with its faults where it looks for results."""
    why = job_documents.reason(JOB_ID, "job", [FAULT], NOW, sha256="0" * 64, size=12)
    found = valid("job-status", job_documents.refused_status(why, 4))
    assert (found["status"], found["failed_at"], found["retryable"]) == ("failed", 5000, False)
    assert found["errors"]["data"][0]["line"] == 3
    assert (found["request_counts"]["total"], found["bytes"]) == (4, 12)


# -- lists --------------------------------------------------------------------------


def test_recent_jobs_have_a_line_each() -> None:
    """Finished, refused and damaged jobs appear with their end and a sentence."""
    done = job_documents.recent_ended(
        job_documents.ended_job(
            job_record(completed=1, status=BatchStatus.COMPLETED, finished_at=NOW)
        )
    )
    assert (done.status, done.at, done.message) == (
        "completed",
        5000,
        "1 of 1 request was answered",
    )
    why = job_documents.reason(JOB_ID, "job", [FULL], NOW)
    refused = job_documents.recent_ended(job_documents.ended_rejected(why))
    assert (refused.status, refused.at) == ("rejected", 5000)
    assert refused.message.startswith("queue_full: ")
    damaged = job_documents.recent_ended(
        job_documents.ended_damaged(job_record(requests=3), "bytes are missing", NOW)
    )
    assert (damaged.status, damaged.requests, damaged.completed) == ("damaged", 3, None)
    assert damaged.message == "bytes are missing"


@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.none() | st.text(max_size=9).filter(lambda t: t.isprintable()),
    st.sampled_from([BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.EXPIRED]),
    st.booleans(),
)
def test_every_finished_job_is_valid_by_its_schema(
    completed: int,
    failed: int,
    model: str | None,
    status: BatchStatus,
    retry: bool,  # noqa: FBT001 - either way
) -> None:
    """Whatever the figures, the written status validates."""
    record = job_record(
        requests=completed + failed,
        completed=completed,
        failed=failed,
        model=model,
        status=status,
        finished_at=NOW,
    )
    valid("job-status", job_documents.job_status(record, errors=failed > 0, retry=retry))
    valid("job-status", job_documents.redelivered_status(record, NOW))
