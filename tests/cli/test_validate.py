"""Checking: `validate` says what the daemon would say."""

from pathlib import Path

import pytest

from builders import config, request
from inbox_daemon.cli.submit import check
from inbox_daemon.contract.errors import SenderError


def said(path: Path, **sections: dict[str, object]) -> tuple[bool, list[str]]:
    """The answer for a file and the sentences, without the path before them."""
    words: list[str] = []
    good = check(path, config(**sections), words.append)
    return good, [line.removeprefix(f"{path}: ") for line in words]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A good file of two requests."""
    path = tmp_path / "job.jsonl"
    path.write_bytes(request("a") + b"\n" + request("b") + b"\n")
    return path


def test_a_good_file_is_ok(job: Path) -> None:
    """A file that would be accepted is said to be, with its number of requests."""
    assert said(job) == (True, ["ok, 2 requests"])


def test_every_bad_line_is_named(job: Path) -> None:
    """Each fault is listed with its line, beyond the hundred that a reason lists."""
    job.write_bytes(request("a") + b"\n" + b"nope\n" * 150)
    good, words = said(job)
    assert (good, len(words), words[0][:21]) == (False, 150, "line 2: invalid_json:")


def test_bad_lines_pass_where_they_become_dead_letters(job: Path) -> None:
    """With on_invalid_line the file is accepted and its bad lines are listed all the same."""
    job.write_bytes(request("a") + b"\nnope\n")
    good, words = said(job, intake={"on_invalid_line": "dead_letter"})
    assert good
    assert words[1] == "ok, 2 requests, 1 of them dead letters at once"


@pytest.mark.parametrize("rule", ["reject", "dead_letter"])
@pytest.mark.parametrize("key", ["max_total_queued_requests", "max_requests_per_job"])
def test_a_file_that_can_never_fit_is_refused(job: Path, rule: str, key: str) -> None:
    """Too many requests are no matter of single lines, so no rule for those lets them pass."""
    good, words = said(job, limits={key: 1}, intake={"on_invalid_line": rule})
    assert not good
    assert words[0].startswith("too_many_requests:")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("a b.jsonl", b"{}", "bad_name"), ("a.jsonl", b"", "empty"), ("b.jsonl", b"\n", "empty")],
)
def test_what_is_wrong_with_the_file_itself_is_said(
    tmp_path: Path, name: str, content: bytes, code: str
) -> None:
    """Name and size are checked as the daemon checks them."""
    (tmp_path / name).write_bytes(content)
    good, words = said(tmp_path / name)
    assert (good, words[0].partition(":")[0], len(words)) == (False, code, 1)


def test_the_configured_model_is_the_one_that_counts(job: Path) -> None:
    """A line for another model than the configured one is refused as the daemon would."""
    job.write_bytes(request("a", model="other") + b"\n")
    good, words = said(job, engine={"model": "/models/mine"})
    assert not good
    assert "unknown_model" in words[0]


def test_a_file_that_cannot_be_read_is_an_error_of_the_sender(tmp_path: Path) -> None:
    """A path that leads to nothing readable is no verdict on a job."""
    with pytest.raises(SenderError, match="cannot be read"):
        said(tmp_path / "none.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(SenderError, match="cannot be read"):
        said(tmp_path / "dir.jsonl")
