"""A job from drop to outbox: complete, in input order, every answer as the engine gave it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import orjson
import pytest

from daemon_process import DaemonProcess, MakeDaemon, StartStandin
from job_files import chat, chats, check_outputs, request
from standin_answers import answer, last_text
from status_watch import StatusWatch

REQUESTS = 2000
# A job's answers may come in any order, so the stand-in answers some late.
JITTERY = ("--slots", "64", "--latency", "0.01", "--jitter", "0.9")
# What other JSON libraries write, which has to be passed on without being rewritten.
ODD = (
    b'{"z": 1.0, "a" :1e2,"price": 0.10, "big": 123456789012345678901234567890,\t"u": "\\u00e9",'
    b' "slash": "\\/", "usage": {"prompt_tokens": 3, "completion_tokens": 4},'
    b' "twice": 1, "twice": 2, "text": "\xc3\xa4\xe2\x80\xa8\xf0\x9f\x90\x9d", "neg": -0.0 }'
)


def mixed_lines() -> list[bytes]:
    """Lines of a mixed job: chats, completions and embeddings, most without a model."""
    lines = []
    for number in range(REQUESTS):
        name, text = f"id-{number}-é", f'Frage {number}: ¿qué? 蜜蜂 🐝\u2028\t"\\ {number / 4}'
        if number % 3 == 0:
            lines.append(request(name, {"input": text, "model": "standin"}, "/v1/embeddings"))
        elif number % 3 == 1:
            lines.append(request(name, {"prompt": text}, "/v1/completions"))
        else:
            lines.append(
                chat(name, text, temperature=1.0, seed=None, logit_bias={"9": 1.5, "1": -0.0})
            )
    return lines


def sent_body(line: bytes) -> bytes:
    """The answer of the stand-in to an input line, the same bytes each time."""
    entry = orjson.loads(line)
    body = {**entry["body"], "model": "standin"}
    return orjson.dumps(answer(entry["url"], body, "standin", last_text(body)))


def check_bodies(lines: list[bytes], folder: Path) -> None:
    """Check that each answer is in its line byte for byte."""
    written = (folder / "output.jsonl").read_bytes().split(b"\n")
    for line, output in zip(lines, written, strict=False):
        assert b'"body":' + sent_body(line) + b"}" in output


def check_mixed(daemon: DaemonProcess) -> None:
    """Run the mixed job and check its outputs and the health."""
    lines = mixed_lines()
    with StatusWatch(daemon.spool / "outbox" / "status.json") as watch:
        outputs = daemon.run_job("mixed", lines)
    check_bodies(lines, daemon.spool / "outbox" / "mixed")
    assert len(outputs.results) == REQUESTS
    usages = [line["response"]["body"]["usage"] for line in outputs.results.values()]
    total = sum(usage["total_tokens"] for usage in usages)
    assert outputs.status["usage"]["total_tokens"] == total
    assert any(job["name"] == "mixed" for status in watch.seen for job in status["jobs"])
    daemon.stop()


def test_command_engine_answers_every_request_on_its_socket(start_daemon: MakeDaemon) -> None:
    """2,000 requests through `[engine] command` come out whole, in order and untouched."""
    daemon = start_daemon(*JITTERY)
    check_mixed(daemon)
    assert len(daemon.executions()) == REQUESTS


def test_endpoint_on_a_socket_answers_every_request(
    make_daemon: MakeDaemon, start_standin: StartStandin, sockets: Path
) -> None:
    """2,000 requests through `[endpoint] url = unix:…` come out whole, in order, untouched."""
    start_standin("--socket", str(sockets / "s"), *JITTERY)
    check_mixed(make_daemon(endpoint={"url": f"unix:{sockets / 's'}"}).start())


def test_endpoint_on_loopback_answers_every_request(
    make_daemon: MakeDaemon, start_standin: StartStandin
) -> None:
    """2,000 requests through `[endpoint] url = http://…` come out whole, in order, untouched."""
    standin = start_standin("--port", "0", *JITTERY)
    check_mixed(make_daemon(endpoint={"url": standin.address}).start())


@pytest.fixture
def odd_server() -> Iterator[str]:
    """Run a server that answers everything with ODD; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(ODD)))
            self.end_headers()
            self.wfile.write(ODD)

        def log_message(self, *_: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_odd_json_is_passed_on_byte_for_byte(make_daemon: MakeDaemon, odd_server: str) -> None:
    """Floats, escapes, key order, doubled keys and white space stay as the engine wrote them."""
    daemon = make_daemon(endpoint={"url": odd_server}).start()
    lines = chats(3)
    daemon.run_job("odd", lines)
    written = (daemon.spool / "outbox" / "odd" / "output.jsonl").read_bytes().split(b"\n")[:-1]
    assert [ODD in line for line in written] == [True] * 3


def test_pretty_printed_answer_becomes_one_line(start_daemon: MakeDaemon) -> None:
    """An answer over several lines becomes one line, and nothing but line breaks changes."""
    daemon = start_daemon()
    lines = chats(3, {1: "[[pretty]]"})
    daemon.run_job("pretty", lines)
    written = (daemon.spool / "outbox" / "pretty" / "output.jsonl").read_bytes().split(b"\n")
    assert len(written) == 4
    pretty = orjson.dumps(orjson.loads(sent_body(lines[1])), option=orjson.OPT_INDENT_2)
    assert pretty.replace(b"\n", b" ") in written[1]


def test_blank_lines_are_no_requests(start_daemon: MakeDaemon) -> None:
    """Blank lines, white space and a missing last newline change nothing in the other lines."""
    daemon = start_daemon()
    lines = chats(3)
    lines[1:1] = [b"\n", b"  \t \n"]
    lines[-1] = lines[-1].rstrip(b"\n")
    outputs = daemon.run_job("gaps", lines)
    assert list(outputs.results) == ["r0", "r1", "r2"]
    assert outputs.results["r1"]["id"].endswith("_4")


def test_jobs_overlap_without_a_barrier(start_daemon: MakeDaemon) -> None:
    """The next job runs and ends while the first one waits for its last request."""
    daemon = start_daemon()
    first = chats(5, {4: "[[hang]]"})
    daemon.drop("first", first)
    daemon.wait_executions(5)
    outputs = daemon.run_job("second", chats(20))
    assert len(outputs.results) == 20
    status = daemon.wait_status(lambda s: len(s["jobs"]) == 1, "the first job alone")
    assert (status["jobs"][0]["name"], status["jobs"][0]["completed"]) == ("first", 4)


def test_marker_of_the_sender_makes_a_drop_certain(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """With NAME.jsonl.ready a file is taken at once, however long settling would take."""
    daemon = make_daemon(intake={"settle_s": 3600}).start()
    lines = chats(2)
    data = b"".join(lines)
    daemon.drop_marker("sure", data)
    outputs = daemon.run_job("sure", lines)
    assert len(outputs.results) == 2
    assert not daemon.dropped()


def test_status_of_the_job_names_what_it_ran(start_daemon: MakeDaemon) -> None:
    """The job's status has OpenAI's fields: endpoint, model, times and files."""
    daemon = start_daemon()
    status = daemon.run_job("named", chats(2)).status
    assert (status["endpoint"], status["model"]) == ("/v1/chat/completions", "standin")
    assert status["created_at"] <= status["in_progress_at"] <= status["completed_at"]
    assert status["input_file_id"] == "named.jsonl"
    assert json.loads((daemon.spool / "outbox/named/status.json").read_bytes())["name"] == "named"
    assert check_outputs(chats(2), daemon.spool / "outbox" / "named").status == status
