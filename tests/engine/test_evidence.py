"""Evidence: a server is proven by an answer, and out when several different requests fail."""

import pytest

from inbox_daemon.engine.base import NoReply, NoReplyKind, Reply
from inbox_daemon.engine.evidence import LEAST_PATIENCE_S, MASS, Evidence, Sign, sign_of

ANSWER, TROUBLE, BUSY = Sign.ANSWER, Sign.TROUBLE, Sign.BUSY


@pytest.mark.parametrize(
    ("status", "sign"),
    [
        (200, Sign.ANSWER),
        (302, Sign.TROUBLE),
        (400, Sign.NOTHING),
        (401, Sign.NOTHING),
        (404, Sign.TROUBLE),
        (408, Sign.BUSY),
        (422, Sign.NOTHING),
        (429, Sign.BUSY),
        (499, Sign.TROUBLE),
        (500, Sign.TROUBLE),
        (502, Sign.TROUBLE),
        (503, Sign.BUSY),
        (529, Sign.BUSY),
    ],
)
def test_each_status_says_something_of_the_server(status: int, sign: Sign) -> None:
    """What refuses the request, or us, says nothing of whether it answers others."""
    assert sign_of(Reply(status, b"{}", "r")) is sign


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null"])
def test_a_success_without_an_object_is_trouble(body: bytes) -> None:
    """A page of a proxy is no answer, whatever its status."""
    assert sign_of(Reply(200, body, "r")) is Sign.TROUBLE


def test_no_reply_is_trouble_and_a_late_408_too() -> None:
    """Only one that came at once is the server's word that it has no room."""
    assert sign_of(NoReply(NoReplyKind.CONNECTION, "reset")) is Sign.TROUBLE
    assert sign_of(Reply(408, b"", "r", early=False)) is Sign.TROUBLE


def flight(evidence: Evidence, name: str, sign: Sign) -> None:
    """Send a request and take its reply."""
    evidence.sent(name, 0.0)
    evidence.replied(name, sign, 1.0)


def test_several_different_requests_that_fail_are_an_outage() -> None:
    """One that fails again counts once, and any answer between them ends the count."""
    evidence = Evidence()
    evidence.sent("open", 0.0)
    for _ in range(5):
        flight(evidence, "a", TROUBLE)
    outs = [evidence.out]
    for name, sign in [
        ("b", TROUBLE),
        ("c", ANSWER),
        ("d", TROUBLE),
        ("e", TROUBLE),
        ("f", TROUBLE),
    ]:
        flight(evidence, name, sign)
        outs.append(evidence.out)
    assert outs == [False] * 5 + [True]
    assert evidence.proven


def test_all_that_was_in_flight_failing_is_an_outage() -> None:
    """A group of two of which none is answered is enough where nothing else is open."""
    evidence = Evidence()
    outs = []
    for name in "ab":
        flight(evidence, name, TROUBLE)
        outs.append(evidence.out)
    assert outs == [False, True]


def test_few_failures_beside_much_that_is_open_are_no_outage() -> None:
    """A request that fails at once comes back before the others are answered."""
    evidence = Evidence()
    for number in range(100):
        evidence.sent(str(number), 0.0)
    outs = []
    for number in range(51):
        evidence.replied(str(number), TROUBLE, 1.0)
        outs.append(evidence.out)
    assert outs == [False] * 49 + [True] * 2


def test_a_server_that_is_full_is_not_out() -> None:
    """It refuses a hundred and works on four; only where it works on none is it out."""
    evidence = Evidence()
    for number in range(4):
        evidence.sent(f"open{number}", 0.0)
    for number in range(100):
        flight(evidence, str(number), BUSY)
    outs = [evidence.out]
    for number in range(4):
        evidence.dropped(f"open{number}")
        outs.append(evidence.out)
    assert outs == [False] * 4 + [True]


def test_where_half_of_all_fails_more_are_needed() -> None:
    """As with one of two backends gone: three in a row are nothing unusual then."""
    evidence = Evidence()
    assert evidence.needed == 1
    for number in range(200):
        flight(evidence, f"bad{number}", TROUBLE)
        flight(evidence, f"good{number}", ANSWER)
    assert 0.4 < evidence.share < 0.6
    assert evidence.needed > 2 * MASS
    for number in range(MASS):
        flight(evidence, f"more{number}", TROUBLE)
    assert not evidence.out
    assert Evidence(evidence.share).needed == evidence.needed


def test_patience_follows_the_answers() -> None:
    """A server of slow answers is given the time of two of them, within bounds."""
    evidence = Evidence()
    assert evidence.patience_s == LEAST_PATIENCE_S
    evidence.sent("a", 0.0)
    evidence.replied("a", ANSWER, 5.0)
    assert evidence.patience_s == 10.0
    for number in range(200):
        evidence.sent(str(number), 0.0)
        evidence.replied(str(number), ANSWER, 300.0)
    assert evidence.patience_s == 30.0
