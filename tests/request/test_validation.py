"""Validation: the yes or no to a whole file, with every fault in its line."""

import hashlib
import io
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders import CHAT, limits, nested, request
from inbox_daemon.contract.limits import MAX_LISTED_FAULTS
from inbox_daemon.jobs.files import InputFile
from inbox_daemon.request.validation import (
    Served,
    Validation,
    read_lines,
    validate_file,
    validate_lines,
)

ANY = Served()
LONG = 200


def check(
    data: bytes, served: Served = ANY, *, keep_invalid: bool = False, **changed: int
) -> Validation:
    """Validate bytes as one file."""
    rules = limits(**changed)
    lines = read_lines(io.BytesIO(data), rules.max_line_bytes)
    return validate_lines(lines, rules, served, keep_invalid=keep_invalid)


def faults(data: bytes, served: Served = ANY, **changed: int) -> list[tuple[str, int | None]]:
    """The code and line of each listed fault."""
    return [
        (fault.code, fault.line)
        for fault in check(data, served, keep_invalid=False, **changed).listed
    ]


def lines(*parts: bytes) -> bytes:
    """The parts, each with its newline."""
    return b"".join(part + b"\n" for part in parts)


def test_a_good_file_is_accepted_with_what_its_lines_agree_on() -> None:
    """Counts, endpoint and model of a valid job are returned."""
    found = check(lines(request("a", model="m"), request("b", model="m")))
    assert found.accepted(dead_letter_lines=False)
    assert (found.requests, found.faults, found.endpoint, found.model) == (2, 0, CHAT, "m")


def test_a_file_is_read_from_its_path(tmp_path: Path) -> None:
    """The same check holds for a file on disk."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(request("a"), b"nope"))
    found = validate_file(path, limits(), ANY)
    assert [(f.code, f.line) for f in found.listed] == [("invalid_json", 2)]


def test_lines_to_different_endpoints_have_none_in_common() -> None:
    """A job may mix URLs; it then has no single endpoint."""
    data = lines(request("a"), request("b", "/v1/embeddings"))
    assert (check(data).accepted(dead_letter_lines=False), check(data).endpoint) == (True, None)


# -- what is a line -----------------------------------------------------------------


def test_the_last_newline_may_be_missing() -> None:
    """A complete last line counts without its newline."""
    assert check(lines(request("a")) + request("b")).requests == 2


def test_windows_line_ends_are_accepted() -> None:
    """CR LF separates lines as LF does."""
    data = request("a") + b"\r\n" + request("b") + b"\r\n"
    assert (check(data).requests, check(data).faults) == (2, 0)


def test_blank_lines_are_no_requests_and_keep_the_numbers() -> None:
    """White space between lines is skipped, and a fault names the line as an editor counts."""
    data = lines(b"", request("a"), b" \t ", b"\r", b"nope")
    assert (check(data).requests, faults(data)) == (2, [("invalid_json", 5)])


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\t\r\n"])
def test_a_file_without_a_request_is_empty(data: bytes) -> None:
    """Nothing but white space is no job."""
    assert faults(data) == [("empty", None)]
    assert not check(data).accepted(dead_letter_lines=True)


def test_only_a_newline_ends_a_line() -> None:
    """Separators that other tools take for line ends stay inside their JSON string."""
    line = request("a\u2028b\u0085c", user="x\u2029\x0b\x0c")
    assert (check(lines(line)).requests, check(lines(line)).faults) == (1, 0)


def test_a_byte_order_mark_costs_the_first_line() -> None:
    """A file that starts with a byte order mark is refused in line 1."""
    data = b"\xef\xbb\xbf" + lines(request("a"), request("b"))
    assert faults(data) == [("invalid_json", 1)]


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize(("extra", "expected"), [(-1, []), (0, []), (1, [("line_too_long", 1)])])
def test_a_lines_length_is_held_to_its_limit_exactly(
    extra: int, expected: list[tuple[str, int]], end: bytes
) -> None:
    """The limit counts the line's bytes without its newline, at the end of the file too."""
    line = request("a", user="")
    line = request("a", user="x" * (LONG - len(line) + extra))
    assert len(line) == LONG + extra
    assert faults(line + end, max_line_bytes=LONG) == expected


def test_lines_after_an_overlong_one_keep_their_numbers() -> None:
    """The rest of an overlong line is skipped, however long, and counting goes on."""
    data = lines(request("a"), b"x" * 3_000_000, b"nope", request("b"))
    assert faults(data, max_line_bytes=LONG) == [("line_too_long", 2), ("invalid_json", 3)]


def test_an_overlong_line_of_white_space_is_blank() -> None:
    """White space is no request at any length, as the runner counts requests."""
    data = lines(request("a"), b" " * 3_000_000, request("b")) + b"\t" * 1_000
    found = check(data, max_line_bytes=LONG)
    assert (found.requests, found.faults) == (2, 0)


PIECES = st.sampled_from(
    [
        b"\n",
        b" ",
        b"\t",
        b"\r",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"\x85",
        b"\xa0",
        b"{}",
        b"x" * 9,
        b" " * 9,
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=30).map(b"".join))
@example(b" " * 9 + b"\n{}")
def test_validator_and_runner_count_the_same_requests(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """What the validator counts as a request is what the runner will run, line by line."""
    found = check(data, max_line_bytes=4, keep_invalid=True)
    path = tmp_path_factory.mktemp("job") / "input.jsonl"
    path.write_bytes(data)
    with InputFile(path, found.requests) as job:
        assert {line.line for line in found.invalid} <= set(job.lines)
        assert [job.read(ordinal) for ordinal in range(len(job))] == [
            data.split(b"\n")[number - 1] for number in job.lines
        ]


# -- what must be unique or the same ------------------------------------------------


def test_a_duplicate_custom_id_names_the_first_line() -> None:
    """The second line with a custom_id is at fault and says where the first is."""
    fault = check(lines(request("a"), request("b"), request("a"))).listed[0]
    assert (fault.code, fault.line, "line 1" in fault.message) == ("duplicate_custom_id", 3, True)


def test_an_invalid_line_does_not_reserve_its_custom_id() -> None:
    """A line that is refused for its shape leaves its custom_id to a good one."""
    bad = orjson.dumps({"custom_id": "a", "url": "/nowhere", "body": {}})
    assert faults(lines(bad, request("a"))) == [("invalid_request", 1)]


def test_one_file_has_one_model() -> None:
    """A line that names another model than the ones before is at fault."""
    data = lines(request("a", model="m"), request("b", model="n"))
    assert faults(data) == [("mixed_models", 2)]


def test_a_model_left_out_is_the_served_one() -> None:
    """Lines without a model agree with lines that name the default, and with no other."""
    served = Served("m", frozenset({"m", "n"}))
    assert faults(lines(request("a"), request("b", model="m")), served) == []
    assert faults(lines(request("a"), request("b", model="n")), served) == [("mixed_models", 2)]
    assert check(lines(request("a")), served).model == "m"


def test_a_model_that_is_not_served_is_named_with_those_that_are() -> None:
    """The sender learns which names would be accepted."""
    served = Served("m", frozenset({"m", "z"}))
    fault = check(lines(request("a", model="gpt\x1b")), served).listed[0]
    assert (fault.code, fault.param) == ("unknown_model", "body.model")
    assert "m, z" in fault.message
    assert fault.message.isprintable()


def test_an_unknown_model_does_not_spoil_the_lines_after_it() -> None:
    """One line with a wrong model is one fault, not one for each other line."""
    served = Served("m", frozenset({"m"}))
    data = lines(request("a", model="x"), request("b"), request("c", model="m"))
    found = check(data, served, keep_invalid=True)
    assert [(f.code, f.line) for f in found.listed] == [("unknown_model", 1)]
    assert found.accepted(dead_letter_lines=True)


def test_any_model_is_accepted_while_the_served_ones_are_unknown() -> None:
    """Before the engine has said what it serves, a job may name what it wants."""
    assert faults(lines(request("a", model="x"), request("b", model="x"))) == []


# -- how many -----------------------------------------------------------------------


def test_as_many_requests_as_allowed_are_accepted() -> None:
    """The limit is the largest number that passes; blank lines do not count."""
    data = lines(*(part for n in range(3) for part in (request(str(n)), b"")))
    assert faults(data, max_requests_per_job=3) == []
    assert faults(data, max_requests_per_job=2) == [("too_many_requests", None)]


def test_the_first_hundred_faults_are_listed_and_all_are_counted() -> None:
    """A hopeless file gets a list that a person can read."""
    found = check(lines(*[b"nope"] * 250))
    assert (len(found.listed), found.faults) == (MAX_LISTED_FAULTS, 250)
    assert [fault.line for fault in found.listed] == list(range(1, 101))


def test_a_fault_of_the_whole_file_comes_first() -> None:
    """A fault of the whole file is reported even beside a hundred faults of lines."""
    found = check(lines(*[b"nope"] * 250), max_requests_per_job=200)
    assert found.listed[0].code == "too_many_requests"
    assert (len(found.listed), found.faults) == (MAX_LISTED_FAULTS, 201)


# -- invalid lines as dead letters --------------------------------------------------


def test_bad_lines_may_be_kept_for_dead_letters() -> None:
    """Under that rule a job runs without its bad lines, each of which is named."""
    data = lines(request("a"), b"nope", nested(100), request("a"))
    found = check(data, keep_invalid=True)
    assert [(line.line, line.fault.code) for line in found.invalid] == [
        (2, "invalid_json"),
        (3, "too_deep"),
        (4, "duplicate_custom_id"),
    ]
    assert found.accepted(dead_letter_lines=True)
    assert not found.accepted(dead_letter_lines=False)


def test_a_file_of_bad_lines_alone_is_refused() -> None:
    """A job in which nothing could run is refused under any rule."""
    assert not check(lines(b"x", b"y"), keep_invalid=True).accepted(dead_letter_lines=True)


def test_nothing_is_kept_that_was_not_asked_for() -> None:
    """Without that rule a file of bad lines costs no memory for each of them."""
    assert check(lines(b"x", b"y")).invalid == []


# -- the digest ---------------------------------------------------------------------


def test_the_digest_tells_which_line_has_which_custom_id() -> None:
    """It stays the same for the same ids in the same lines, and only then."""

    def digest(*parts: bytes) -> str:
        return check(lines(*parts)).digest.hexdigest()

    first = digest(request("a"), request("b"))
    assert first == digest(request("a", user="other"), request("b"))
    assert first != digest(request("b"), request("a"))
    assert first != digest(b"", request("a"), request("b"))
    assert first != digest(request("a"), b"nope")


def test_the_digest_is_what_it_always_was() -> None:
    """It is the sha256 of each line's number and custom_id as compact JSON, with nothing between.

    Jobs that were accepted before an update are proved complete after it.
    """
    found = check(lines(request("a"), b"", b"nope", request('"],[é')))
    told = b'[1,"a"][3,null]' + '[4,"\\"],[é"]'.encode()
    assert found.digest.hexdigest() == hashlib.sha256(told).hexdigest()


def test_lines_keep_their_newline_and_their_numbers() -> None:
    """Lines are handed on as they are; only one over the limit is not handed on at all."""
    data = b"ab\n\nabcd\nabcde\n     \nab"
    assert list(read_lines(io.BytesIO(data), 4)) == [
        (1, b"ab\n"),
        (2, b"\n"),
        (3, b"abcd\n"),
        (4, None),
        (5, b"\n"),
        (6, b"ab"),
    ]
