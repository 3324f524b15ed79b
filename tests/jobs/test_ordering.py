"""The order of work inside a chunk: shared prefixes together, long answers first at the end."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import CHAT, JOB_ID
from inbox_daemon.contract.config import RunConfig
from inbox_daemon.contract.documents import URLS
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.commit import GroupCommit
from inbox_daemon.jobs.ordering import READ_BYTES, SHARED_BYTES, Sketch, arrange, order, sketch
from inbox_daemon.request.endpoints import ENDPOINTS
from inbox_daemon.run.suspects import Suspects
from job_desk import Desk

LONG = "All that both of them begin with. " * 40


def line(*contents: str, to: str = CHAT, **caps: int) -> bytes:
    """A chat whose messages have the given contents."""
    body: dict[str, object] = {**caps}
    body["messages"] = [{"role": "user", "content": text} for text in contents]
    return json.dumps({"custom_id": "a", "method": "POST", "url": to, "body": body}).encode()


def sent(lines: Sequence[bytes], *, long_first: bool = True) -> list[int]:
    """Return the order in which lines are sent."""
    return order(lines, long_first=long_first)


# -- prefixes -----------------------------------------------------------------------


def test_requests_that_share_a_long_prefix_follow_each_other() -> None:
    """Each group stands where its first request stood, in input order inside."""
    a, b = "A " + LONG, "B " + LONG
    lines = [line(a, "1"), line(b, "2"), line("alone"), line(a, "3"), line(b, "4"), line(a, "5")]
    assert sent(lines) == [0, 3, 5, 1, 4, 2]


def test_a_longer_shared_prefix_groups_inside_a_shorter_one() -> None:
    """Questions on one document stand together inside all that share the instructions."""
    first, second = LONG + "document one " * 300, LONG + "document two " * 300
    lines = [line(first, "1"), line(second, "2"), line(first, "3"), line(second, "4")]
    assert sent(lines) == [0, 2, 1, 3]


def test_a_short_shared_prefix_changes_nothing() -> None:
    """A shared system prompt of one sentence does not change the order."""
    lines = [line(text, str(n)) for n, text in enumerate(["be kind", "be quick"] * 3)]
    assert sent(lines) == list(range(6))


@pytest.mark.parametrize(
    ("url", "part"), [(url, part) for url in URLS for part in ENDPOINTS[url].prompt]
)
def test_the_prompt_is_found_in_every_kind_of_request(url: str, part: str) -> None:
    """A shared prompt is recognised under each endpoint's name for it."""
    lines = [
        json.dumps({"url": url, "body": {part: [text + LONG]}}).encode()
        for text in ("A", "B", "A", "B")
    ]
    assert sent(lines) == [0, 2, 1, 3]


# -- lengths ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "cap"), [(url, cap) for url in URLS for cap in ENDPOINTS[url].caps]
)
def test_long_answers_go_first_at_the_end_of_a_job(url: str, cap: str) -> None:
    """The longest answer must not be the last to start."""
    lines = [line("x", to=url, **{cap: tokens}) for tokens in (10, 900, 100, 1000)]
    assert sent(lines) == [1, 3, 2, 0]
    assert sent(lines, long_first=False) == [0, 1, 2, 3]


def test_an_answer_without_a_cap_may_be_the_longest() -> None:
    """Its length is unknown, so it does not wait for the end."""
    assert sent([line("x", max_tokens=4000), line("x")]) == [1, 0]


def test_completions_without_a_cap_end_after_sixteen_tokens() -> None:
    """OpenAI's default for the old endpoint is short."""
    url = "/v1/completions"
    assert sent([line("x", to=url), line("x", to=url, max_tokens=100)]) == [1, 0]


def test_a_group_goes_as_early_as_its_longest_answer() -> None:
    """A group is not split for a long answer in it."""
    lines = [
        line("x", max_tokens=100),
        line(LONG, "1", max_tokens=10),
        line(LONG, "2", max_tokens=1000),
    ]
    assert sent(lines) == [2, 1, 0]


# -- any line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"body": 1}',
        b'{"body": {"messages": {"a": 1}, "max_tokens": "many"}}',
        b'{"body": {"max_tokens": -5}}',
        b'{"body": {"max_tokens": 1e400}}',
        b"[" * 100_000,
        b'{"body": {"messages": ' + b"[" * 400 + b"]" * 400 + b"}}",
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_request_keeps_its_place(raw: bytes) -> None:
    """Lines that will be set aside are in the order like any other."""
    assert sent([line("a"), raw, line("b")], long_first=False) == [0, 1, 2]
    assert sorted(sent([line("a"), raw, line("b")])) == [0, 1, 2]


def test_a_line_too_long_to_be_read_twice_keeps_its_place() -> None:
    """A line over READ_BYTES is not read for the order."""
    assert sketch(line("x" * READ_BYTES, max_tokens=5)).prefixes == ()


sketches = st.builds(
    Sketch,
    st.lists(st.integers(0, 3), max_size=len(SHARED_BYTES)).map(tuple),
    st.integers(0, 5),
)


@given(st.lists(sketches), st.booleans())
def test_the_order_is_a_permutation_that_keeps_groups_whole(
    given_sketches: list[Sketch],
    long_first: bool,  # noqa: FBT001 - hypothesis gives it by name
) -> None:
    """Each request is sent once, and those that share the first prefix stand together."""
    found = arrange(given_sketches, long_first=long_first)
    assert sorted(found) == list(range(len(given_sketches)))
    groups = [given_sketches[index].prefixes[:1] for index in found]
    for prefix in {group for group in groups if group}:
        places = [place for place, group in enumerate(groups) if group == prefix]
        assert places == list(range(places[0], places[0] + len(places)))


@given(st.lists(st.integers(0, 12)))
def test_without_prefixes_only_the_length_decides(lengths: list[int]) -> None:
    """Longer first, and input order among equals."""
    found = arrange([Sketch((), length) for length in lengths], long_first=True)
    assert found == sorted(range(len(lengths)), key=lambda index: -lengths[index])


# -- in a job -----------------------------------------------------------------------


class CommittingDesk(Desk):
    """A job whose chunks are committed as the daemon does it."""

    def __init__(self, root: Path, lines: list[bytes], *, reorder: bool) -> None:
        """Start the job."""
        super().__init__(root, lines)
        queue = ActiveJobs(self.ledger)
        queue.add(self.record, self.run)
        further = Suspects(queue, None, lambda *_: None)
        self.committer = GroupCommit(RunConfig(reorder=reorder), queue, self.ledger, further)

    async def started(self, size: int) -> list[int]:
        """Admit a chunk and start all of it."""
        self.run.marks.admit(size)
        await self.committer.commit()
        return self.take()


async def test_a_chunk_is_ordered_and_a_chunk_stays_a_run_of_lines(tmp_path: Path) -> None:
    """The first chunk is grouped; only the last one has its long answers first."""
    lines = [line(("A ", "B ")[n % 2] + LONG, max_tokens=2**n) for n in range(6)]
    desk = CommittingDesk(tmp_path, lines, reorder=True)
    assert await desk.started(4) == [0, 2, 1, 3]
    assert desk.ledger.progress(JOB_ID).admitted == 4
    assert await desk.started(4) == [5, 4]
    desk.close()


async def test_reorder_off_sends_in_input_order(tmp_path: Path) -> None:
    """With reorder = false neither prefixes nor lengths change the order."""
    lines = [line(("A ", "B ")[n % 2] + LONG, max_tokens=2**n) for n in range(6)]
    desk = CommittingDesk(tmp_path, lines, reorder=False)
    assert await desk.started(6) == [0, 1, 2, 3, 4, 5]
    desk.close()
