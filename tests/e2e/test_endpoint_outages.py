"""An endpoint's bad night costs no request: outages, overload, slowness, a poison request."""

import pytest

from daemon_process import MakeDaemon
from fickle_endpoint import FAILURES, fickle_endpoint
from job_files import chats, check_outputs

MAX_ATTEMPTS = 3
COUNT = 300


@pytest.mark.parametrize("name", FAILURES)
def test_an_outage_costs_nothing_but_time(make_daemon: MakeDaemon, name: str) -> None:
    """However a server fails whose health is always well, each request is answered in the end."""
    with fickle_endpoint(latency_s=0.02, failure=FAILURES[name], after=60) as endpoint:
        daemon = make_daemon(endpoint={"url": endpoint.address}).start()
        lines = chats(COUNT)
        daemon.drop("job", lines)
        shown = daemon.wait_status(lambda s: s["engine"]["state"] == "backoff", "the outage")
        daemon.wait_status(
            lambda s: "has answered no request since" in (s["engine"]["last_error"] or ""),
            "the reason",
        )
        failed = endpoint.failed
        daemon.wait(lambda: endpoint.failed >= failed + 2, "two more tries")
        # One at a time, and not a window of them.
        assert endpoint.failed <= failed + 20
        assert shown["dead_letters"] == 0
        endpoint.failure = None
        outputs = check_outputs(lines, daemon.wait_outcome("job"))
        assert len(outputs.results) == COUNT
        assert daemon.verify("job") == 0
        assert max(endpoint.executions.values()) <= 2


def test_requests_that_always_fail_are_the_only_dead_letters(make_daemon: MakeDaemon) -> None:
    """One in a hundred gets a 500 whatever else is answered, the last ones of the job too."""
    bad = dict.fromkeys((3, 77, 150, 222, 297, 298, 299), "[[500]]")
    with fickle_endpoint(latency_s=0.02) as endpoint:
        daemon = make_daemon(endpoint={"url": endpoint.address}).start()
        outputs = daemon.run_job("job", chats(COUNT, bad))
        assert outputs.reasons() == {f"r{n}": "max_attempts" for n in bad}
        tried = [count for text, count in endpoint.executions.items() if "[[500]]" in text]
        assert max(tried) <= 4 * MAX_ATTEMPTS


def test_a_poison_request_behind_a_router_is_found(make_daemon: MakeDaemon) -> None:
    """It breaks every connection and the router restarts at once; its neighbours are unharmed."""
    with fickle_endpoint(latency_s=0.02) as endpoint:
        daemon = make_daemon(endpoint={"url": endpoint.address}).start()
        outputs = daemon.run_job("job", chats(120, {60: "[[kill]]"}))
        assert set(outputs.reasons()) == {"r60"}
        assert len(outputs.results) == 119


@pytest.mark.parametrize("name", ["503 text", "500 json", "reset"])
def test_one_of_two_backends_is_gone(make_daemon: MakeDaemon, name: str) -> None:
    """Half of the requests fail for as long as it lasts, and none is given up."""
    with fickle_endpoint(latency_s=0.02, failure=FAILURES[name], share=0.5) as endpoint:
        daemon = make_daemon(endpoint={"url": endpoint.address}).start()
        outputs = daemon.run_job("job", chats(200))
        assert len(outputs.results) == 200


def test_an_overload_is_no_failure(make_daemon: MakeDaemon) -> None:
    """A server that takes ten at a time gets about ten, and each request its answer."""
    with fickle_endpoint(latency_s=0.02, limit=10) as endpoint:
        daemon = make_daemon(endpoint={"url": endpoint.address}).start()
        outputs = daemon.run_job("job", chats(1500))
        assert len(outputs.results) == 1500
        assert endpoint.most == 10
        assert endpoint.refused < 750


def test_a_slow_server_times_nothing_out(make_daemon: MakeDaemon) -> None:
    """One slot and a time-out of thirty answers: what waits in its queue is not the request's."""
    with fickle_endpoint(latency_s=0.05, slots=1) as endpoint:
        daemon = make_daemon(
            endpoint={"url": endpoint.address}, run={"request_timeout_s": 1.5}
        ).start()
        outputs = daemon.run_job("job", chats(100))
        assert len(outputs.results) == 100
