"""The web apps in examples/, in Python and in JavaScript, against a real daemon.

One daemon serves most tests, by rsync between two folders of one machine; the round trip
goes by rsync over ssh, with the two restricted keys.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon, bound_to_us
from job_files import Json, chats
from sshd import account, needs_ssh

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = CHECKOUT / "examples"
NODE = shutil.which("node")
PATIENCE_S = 60

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")

LANGUAGES = {
    "python": (sys.executable, str(EXAMPLES / "web_app.py")),
    "javascript": (str(NODE), str(EXAMPLES / "web_app.mjs")),
}


@dataclass(frozen=True)
class App:
    """One web app: its command, and the environment that names its folders."""

    command: tuple[str, ...]
    environment: dict[str, str]

    @property
    def jobs(self) -> Path:
        """The folder of what it sends and fetches."""
        return Path(self.environment["JOBS"])

    def start(self, *words: str, asked: str = "") -> subprocess.Popen[str]:
        """Start a command of it, with its questions."""
        child = subprocess.Popen(
            bound_to_us(*self.command, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert child.stdin is not None
        child.stdin.write(asked)
        child.stdin.close()
        child.stdin = None
        return child

    def run(self, *words: str, asked: str = "") -> tuple[int, list[Json], str]:
        """Run a command to its end; return its exit status, printed JSON and messages."""
        return ended(self.start(*words, asked=asked))


def ended(child: subprocess.Popen[str]) -> tuple[int, list[Json], str]:
    """Wait for its end; return the exit status, the JSON that was printed, and the messages."""
    with child:
        out, told = child.communicate(timeout=PATIENCE_S)
    printed = [json.loads(line) for line in out.split("\n") if line.startswith("{")]
    return child.returncode, printed, told or out


@pytest.fixture(params=["python", pytest.param("javascript", marks=needs_node)])
def language(request: pytest.FixtureRequest) -> str:
    """Name each language in turn; jobs carry it in their names."""
    return str(request.param)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Return one running daemon for all tests of this file."""
    daemon = DaemonProcess(tmp_path_factory.mktemp("service"), run={"max_attempts": 1})
    yield daemon.start()
    daemon.close()


def beside(language: str, outbox: Path, tmp_path: Path, **more: str) -> App:
    """A web app on the spool's own machine."""
    folders = {"INBOX": f"{outbox.parent / 'inbox'}/", "OUTBOX": f"{outbox}/"}
    settings = {"JOBS": str(tmp_path / "jobs"), "POLL_S": "0.1"}
    return App(LANGUAGES[language], os.environ | folders | settings | more)


@pytest.fixture
def app(language: str, service: DaemonProcess, tmp_path: Path) -> App:
    """Return a web app on the machine of the shared daemon."""
    return beside(language, service.spool / "outbox", tmp_path)


@needs_ssh
def test_the_round_trip_over_ssh(language: str, make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Each question has its answer, in order; what failed once is asked again, no other twice."""
    daemon = make_daemon(run={"max_attempts": 1}).start()
    texts = [
        "first",
        "fails once [[500x1]]",
        "a line\u2028of two",
        'says "quoted"',
        "refused [[400]]",
    ]
    with account(tmp_path / "app", daemon.spool) as place:
        settings = {"JOBS": str(tmp_path / "jobs"), "POLL_S": "0.1"}
        app = App(LANGUAGES[language], place.environment | settings)
        code, printed, told = app.run("ask", "trip", asked="\n".join(texts))
        assert code == 3, told
        assert [line["id"] for line in printed] == [f"q{n}" for n in range(1, 6)]
        assert [line.get("answer") for line in printed[:4]] == [
            f"echo: {text}" for text in texts[:4]
        ]
        assert "error" in printed[4]
        begun = daemon.executions()
        assert sorted(begun) == sorted([*texts, texts[1]])
        assert app.run("ask", "trip", asked="\n".join(texts))[:2] == (3, printed)
        assert daemon.executions() == begun
        assert app.run("health")[0] == 0


def test_results_appear_whole(app: App, service: DaemonProcess, language: str) -> None:
    """The folder of results that an app shows is the one in outbox/, byte for byte."""
    name = f"whole-{language}"
    assert app.run("ask", name, asked="one\ntwo\nthree")[0] == 0
    there = service.spool / "outbox" / name
    assert {path.name: path.read_bytes() for path in (app.jobs / name).iterdir()} == {
        path.name: path.read_bytes() for path in there.iterdir()
    }


CUTTING = """\
#!/bin/sh
# rsync, whose first two transfers of results are cut: one fails, one seems complete.
case "$*" in
*'/***'*)
    cuts=$(cat "$CUTS" 2>/dev/null || echo 0)
    echo $((cuts + 1)) >"$CUTS"
    if [ "$cuts" = 0 ]; then exit 12; fi
    "$REAL" "$@" || exit
    if [ "$cuts" = 1 ]; then
        for file in "$JOBS"/.*.part/*/output.jsonl; do truncate -s -9 "$file"; done
        ls "$JOBS" >"$CUTS.seen"
    fi ;;
*) exec "$REAL" "$@" ;;
esac
"""


def test_a_cut_transfer_is_never_shown(
    language: str, service: DaemonProcess, tmp_path: Path
) -> None:
    """A fetch that failed, or left a file short, is repeated before its results are shown."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "rsync"
    script.write_text(CUTTING)
    script.chmod(0o755)
    cutting = {
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "REAL": str(shutil.which("rsync")),
        "CUTS": str(tmp_path / "cuts"),
    }
    app = beside(language, service.spool / "outbox", tmp_path, **cutting)
    name = f"cut-{language}"
    code, printed, told = app.run("ask", name, asked="question")
    assert (code, len(printed)) == (0, 1), told
    assert "rsync ended with 12" in told
    assert "are not whole" in told
    assert name not in (tmp_path / "cuts.seen").read_text().split()


def test_a_bad_job_ends_with_its_reason(app: App, service: DaemonProcess, language: str) -> None:
    """A job that will never be taken ends the command with the service's own words."""
    code, _, told = app.run("ask", f"long-{language}", asked="x" * 1_100_000)
    assert code == 1
    assert "line 1" in told
    assert not (app.jobs / f"long-{language}").exists()


def test_another_file_of_the_same_name_is_noticed(
    app: App, service: DaemonProcess, language: str
) -> None:
    """Results of other questions under the same name are not taken for answers to these."""
    name = f"taken-{language}"
    service.run_job(name, chats(2))
    code, printed, told = app.run("ask", name, asked="something else")
    assert (code, printed) == (1, [])
    assert "choose another name" in told


def test_an_app_waits_for_room_and_sends_a_refused_job_again(
    language: str, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """A full queue holds a job back, and an earlier refusal for want of room is no answer."""
    daemon = make_daemon(limits={"max_queue_depth": 1}).start()
    app = beside(language, daemon.spool / "outbox", tmp_path)
    app.run("order", "ALL", "pause")
    daemon.wait_status(lambda status: status["worker"]["state"] == "paused", "the pause")
    daemon.drop("other", chats(1))
    daemon.wait_active("other")
    asking = app.start("ask", "held", asked="question")
    assert asking.stderr is not None
    assert asking.stderr.readline() == "waiting: the queue is full\n"
    sent = (app.jobs / "held.jsonl").read_bytes()
    daemon.drop("held", [sent])  # as if another sender had filled the queue
    assert daemon.wait_refusal("held")["retryable"]
    app.run("order", "ALL", "resume")
    code, printed, told = ended(asking)
    assert (code, printed) == (0, [{"id": "q1", "answer": "echo: question"}]), told


def test_an_app_cancels_its_job(language: str, make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A cancelled job comes back with what was finished, and with a reason for the rest."""
    daemon = make_daemon().start()
    app = beside(language, daemon.spool / "outbox", tmp_path)
    asking = app.start("ask", "long", asked="quick\nnever [[hang]]")
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] == 1, "one answer")
    assert app.run("order", "long", "cancel")[0] == 0
    code, printed, told = ended(asking)
    assert code == 3, told
    assert printed[0] == {"id": "q1", "answer": "echo: quick"}
    assert "cancelled" in printed[1]["error"]


def example_of_the_health() -> Json:
    """The health document that the page on operating shows."""
    readme = (CHECKOUT / "docs" / "OPERATING.md").read_text()
    found = re.search(r"<!-- document: status -->\n```json\n(.*?)```", readme, re.DOTALL)
    assert found
    document: Json = json.loads(found[1])
    return document | {"written_at": time.time()}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({}, 0, "up"),
        ({"written_at": 0}, 1, "the service is down"),
        ({"written_at": 9e9}, 1, "the service is down"),
        ({"status": "unhealthy", "reasons": ["the disk is full"]}, 1, "the disk is full"),
        ({"queue": {"queue_available": 0, "total_queued_requests": 0}}, 0, "the queue is full"),
        (
            {"queue": {"queue_available": 1, "total_queued_requests": 100_000}},
            0,
            "too many requests are queued",
        ),
        (None, 1, "never started"),
    ],
    ids=["up", "stale", "future", "unhealthy", "full", "crowded", "none"],
)
def test_an_app_reads_the_health(
    language: str, tmp_path: Path, change: Json | None, code: int, words: str
) -> None:
    """An app distinguishes a service that is down, unhealthy or full from one that is up."""
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    if change is not None:
        (outbox / "status.json").write_text(json.dumps(example_of_the_health() | change))
    found, _, told = beside(language, outbox, tmp_path).run("health")
    assert found == code
    assert words in told
