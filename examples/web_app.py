#!/usr/bin/env python3
"""What a web app does with inbox-daemon: send a job, wait, fetch the answers, match them.

    web_app.py health             say whether the service is up, and has room
    web_app.py ask NAME           ask each line of stdin as the job NAME; print the answers
    web_app.py order NAME ORDER   give an order: cancel, pause, resume, redrive, purge

Only the standard library and rsync are needed.  In the environment: INBOX and OUTBOX, as
rsync names the two folders (by default the two keys of deploy/sender/ssh_config; on the
same machine /srv/inbox-daemon/inbox/ and .../outbox/); JOBS, the folder for what is sent
and fetched; POLL_S, the seconds between two looks.  Each command may be repeated after any
failure: nothing is asked twice.

docs/SENDERS.md explains each part.  examples/web_app.mjs is the same in JavaScript.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

INBOX = os.environ.get("INBOX", "gpu-inbox:")
OUTBOX = os.environ.get("OUTBOX", "gpu-outbox:")
JOBS = Path(os.environ.get("JOBS", "jobs"))
POLL_S = float(os.environ.get("POLL_S", "5"))
# What may end otherwise the next time; the other reasons would come again.
WORTH_ANOTHER_TRY = {"max_attempts", "timeout"}
TRIES = 2
Json = dict[str, Any]
Found = TypeVar("Found")


class JobError(Exception):
    """A job that ends without results; the message says why."""


class NotYet(Exception):
    """What was looked for is not there yet; the message says why."""


# -- writing a job ---------------------------------------------------------------------------


def question(custom_id: str, text: str) -> bytes:
    """Make one line; by its custom_id you will know the answer again."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 200}
    url = "/v1/chat/completions"
    request = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def write_job(name: str, lines: Iterable[bytes]) -> Path:
    """Write a job's file; the same name with the same bytes is the same job."""
    JOBS.mkdir(parents=True, exist_ok=True)
    path = JOBS / f"{name}.jsonl"
    path.write_bytes(b"".join(lines))
    return path


# -- rsync, both ways ------------------------------------------------------------------------


def rsync(*words: str | Path) -> None:
    """Run rsync; what does not get through raises, and may be repeated."""
    subprocess.run(["rsync", "--timeout=60", *words], check=True, stdin=subprocess.DEVNULL)


def pull(folder: Path, *patterns: str) -> None:
    """Copy what the patterns name out of outbox/; what is not there is no error."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [f"--include={pattern}" for pattern in patterns]
    options = ("--recursive", "--times", "--checksum", "--delete")
    rsync(*options, *chosen, "--exclude=*", OUTBOX, f"{folder}/")


def read_json(path: Path) -> Json | None:
    """Read a document that may not be there yet."""
    try:
        document: Json = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return document


def wait_for(look: Callable[[], Found]) -> Found:
    """Look again and again until it is there; a transfer that failed is repeated, too."""
    told = ""
    while True:
        try:
            return look()
        except NotYet as error:
            reason = str(error)
        except subprocess.CalledProcessError as error:
            reason = f"rsync ended with {error.returncode}"
        if reason != told:
            print(f"waiting: {reason}", file=sys.stderr, flush=True)
            told = reason
        time.sleep(POLL_S)


# -- the service's health --------------------------------------------------------------------


def read_health() -> Json | None:
    """Fetch the service's health; None before its first start."""
    pull(JOBS / ".health", "/status.json")
    return read_json(JOBS / ".health" / "status.json")


def what_is_wrong(health: Json | None, now: float) -> str | None:
    """Return why the service does not work; None if it does."""
    if health is None:
        return "the service was never started"
    age_s = now - health["written_at"]
    if abs(age_s) > health["stale_after_s"]:  # from the future: a clock was set back since
        return f"the service is down: its health was written {age_s:.0f} s ago"
    if health["status"] == "unhealthy":
        return "; ".join(health["reasons"])
    return None


def what_is_full(health: Json, requests: int) -> str | None:
    """Return why a job of that many requests would be refused for now; None if it has room."""
    queue, limits = health["queue"], health["limits"]
    if queue["queue_available"] < 1:
        return "the queue is full"
    if queue["total_queued_requests"] + requests > limits["max_total_queued_requests"]:
        return "too many requests are queued"
    return None


def look_for_room(requests: int) -> None:
    """Raise NotYet unless a job of that many requests would be taken: back-pressure."""
    health = read_health()
    problem = what_is_wrong(health, time.time()) or what_is_full(health or {}, requests)
    if problem:
        raise NotYet(problem)


# -- sending ---------------------------------------------------------------------------------


def send(path: Path) -> None:
    """Send a job behind its marker, so that it is taken as soon as it is whole."""
    data = path.read_bytes()
    marker = path.with_name(f"{path.name}.ready")
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    marker.write_text(json.dumps(told))
    rsync("--chmod=F640", marker, INBOX)
    rsync("--chmod=F640", path, INBOX)


def give_order(name: str, order: str) -> None:
    """Send a control file: NAME.cancel, NAME.pause and so on; ALL is every job."""
    JOBS.mkdir(parents=True, exist_ok=True)
    path = JOBS / f"{name}.{order}"
    path.write_bytes(b"")
    rsync("--chmod=F640", path, INBOX)


# -- fetching --------------------------------------------------------------------------------


def read_status(name: str) -> Json | None:
    """Fetch a job's status alone; None while it has no folder in outbox/."""
    part = JOBS / f".{name}.part"
    pull(part, f"/{name}/", f"/{name}/status.json")
    return read_json(part / name / "status.json")


def fetch(name: str) -> Path:
    """Fetch a job's folder under a hidden name, and show it once it is whole."""
    part, whole = JOBS / f".{name}.part", JOBS / name
    if not whole.exists():
        pull(part, f"/{name}/***")
        if not is_whole(part / name):
            raise NotYet(f"the results of {name} are not whole")
        (part / name).rename(whole)
    return whole


def is_whole(folder: Path) -> bool:
    """Return whether each file is there with the checksum that status.json gives."""
    status = read_json(folder / "status.json")
    if status is None:
        return False
    for file, checksum in (status["checksums"] or {}).items():
        path = folder / file
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            return False
    return True


def read_lines(path: Path) -> list[bytes]:
    """Split at newlines alone: str.splitlines would also split inside of an answer."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def read_outcomes(folder: Path) -> dict[str, Json]:
    """Every outcome of a job by its custom_id: its answer, or its error."""
    lines = read_lines(folder / "output.jsonl") + read_lines(folder / "errors.jsonl")
    return {outcome["custom_id"]: outcome for outcome in map(json.loads, lines)}


# -- the whole way ---------------------------------------------------------------------------


def run_job(path: Path) -> Path:
    """Send a job when there is room, wait, and return the folder of its results."""
    name, data = path.stem, path.read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    done = read_json(JOBS / name / "status.json")
    if done and done["sha256"] == checksum:
        return JOBS / name
    before = done or wait_for(lambda: read_status(name))
    refused = before["id"] if before and before["status"] == "failed" else None
    while True:
        wait_for(lambda: look_for_room(data.count(b"\n")))
        send(path)
        status = wait_for(partial(look_for_answer, name, refused))
        if status["sha256"] not in {None, checksum}:
            raise JobError(f"another file was sent as {name}: choose another name")
        if status["status"] != "failed":
            break
        if not status["retryable"]:
            raise JobError(status["message"])
        print(f"waiting: {status['message']}", file=sys.stderr, flush=True)
        refused = status["id"]
        time.sleep(POLL_S)
    if status["output_file_id"] is None:
        raise JobError(status["message"])  # its results were fetched away before
    return wait_for(lambda: fetch(name))


def look_for_answer(name: str, seen: str | None) -> Json:
    """Return a job's status; raise NotYet while there is none but the refusal `seen`."""
    status = read_status(name)
    if status is None or status["id"] == seen:
        raise NotYet(f"{name} is not answered yet")
    return status


def ask(name: str, lines: Iterable[bytes]) -> dict[str, Json]:
    """Ask everything; what failed for a passing reason is asked again as another job."""
    path, outcomes = write_job(name, lines), dict[str, Json]()
    for attempt in range(1, TRIES + 1):
        folder = run_job(path)
        outcomes |= read_outcomes(folder)
        again = lines_to_retry(folder, outcomes)
        if not again or attempt == TRIES:
            break
        path = write_job(f"{name}.again-{attempt}", again)
    return outcomes


def lines_to_retry(folder: Path, outcomes: dict[str, Json]) -> list[bytes]:
    """The lines of retry.jsonl that are worth another try, as they are."""

    def worth_it(line: bytes) -> bool:
        outcome = outcomes[json.loads(line)["custom_id"]]
        return outcome["error"]["code"] in WORTH_ANOTHER_TRY

    return [line + b"\n" for line in read_lines(folder / "retry.jsonl") if worth_it(line)]


def main(words: list[str]) -> int:
    """Run one command; 0 done, 1 refused or down, 3 some questions have no answer."""
    match words:
        case ["health"]:
            health = read_health()
            wrong = what_is_wrong(health, time.time())
            print(wrong or (health and what_is_full(health, 1)) or "up")
            return 1 if wrong else 0
        case ["order", name, order]:
            give_order(name, order)
            return 0
        case ["ask", name]:
            texts = {
                f"q{n}": text for n, text in enumerate(sys.stdin.read().split("\n"), 1) if text
            }
            outcomes = ask(name, [question(*item) for item in texts.items()])
            for custom_id in texts:
                print(json.dumps(shown(outcomes[custom_id])))
            return 3 if any(outcome["error"] for outcome in outcomes.values()) else 0
    print(__doc__, file=sys.stderr)
    return 64


def shown(outcome: Json) -> Json:
    """What the user of the web app sees of an outcome."""
    if outcome["error"]:
        return {"id": outcome["custom_id"], "error": outcome["error"]["message"]}
    choice = outcome["response"]["body"]["choices"][0]
    return {"id": outcome["custom_id"], "answer": choice["message"]["content"]}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (JobError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error}")
