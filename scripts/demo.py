"""Run the demo: a daemon, the real vLLM, one file of requests, its answers.

Everything lies in one folder below the checkout: the configuration, the daemon's log, the file
that was sent and the spool. The file is sent under a new name each time, because a name is a job,
and the same file under the same name would be answered with the earlier run's answers.

The run fails, with a sentence and the daemon's last lines, unless all answers are there in input
order, the structured one fits its schema, and the over-long prompt alone is a dead letter.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_answers
import demo_model
from rich.console import Console

CHECKOUT = Path(__file__).parent.parent
EXAMPLE = CHECKOUT / "examples" / "demo.jsonl"
COMMAND = Path(sys.executable).parent / "inbox-daemon"
START_S = 900  # as long as the daemon itself waits for its engine
STOP_S = 35  # the daemon drains within 30 s
ARGUMENTS = {
    "cpu": [
        *("--dtype", "float32"),
        "--enforce-eager",
        *("--max-model-len", "2048"),
        *("--max-num-seqs", "64"),
        *("--gpu-memory-utilization", "0.5"),
    ],
    "gpu": ["--max-model-len", "2048"],
}
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class DemoError(Exception):
    """The demo did not do what it promises; the message says what and what to do."""


@dataclass(frozen=True)
class Place:
    """The folder that holds everything of the demo."""

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration that the daemon and the commands read."""
        return self.folder / "config.toml"

    @property
    def log(self) -> Path:
        """What the daemon and vLLM print."""
        return self.folder / "daemon.log"

    @property
    def outbox(self) -> Path:
        """Where the answers appear."""
        return self.folder / "spool" / "outbox"


def write_config(place: Place, model: Path, engine: str) -> None:
    """Write the configuration for this machine and make the spool with it."""
    env = dict(QUIET)
    if engine == "cpu":
        env["VLLM_CPU_KVCACHE_SPACE"] = "1"
        env["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    lines = [
        "# Written by `make demo` at each run.",
        f"spool = {json.dumps(str(place.folder / 'spool'))}",
        "",
        "[engine]",
        f"model = {json.dumps(str(model))}",
        f"served_model_name = {json.dumps(demo_model.NAME)}",
        f"args = {json.dumps(ARGUMENTS[engine])}",
        "",
        "[engine.env]",
        *(f"{name} = {json.dumps(value)}" for name, value in env.items()),
        "",
        "[status]",
        "interval_s = 1",
    ]
    place.config.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def alone(place: Place) -> Iterator[None]:
    """Hold the folder for this run; end the program when another run of the demo holds it."""
    place.folder.mkdir(parents=True, exist_ok=True)
    with (place.folder / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"Another run of the demo works in {place.folder}; let it end first."
            raise SystemExit(message) from None
        yield


def environment() -> dict[str, str]:
    """Return the environment without the settings of another daemon."""
    return {k: v for k, v in os.environ.items() if not k.startswith("INBOX_DAEMON_")}


def command(place: Place, name: str, *arguments: str) -> list[str]:
    """Return an inbox-daemon command that reads the demo's configuration."""
    return [str(COMMAND), name, "--config", str(place.config), *arguments]


@contextmanager
def daemon(place: Place, console: Console) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon in a session of its own; stop it with SIGTERM whatever happens."""
    with place.log.open("wb") as log:
        process = subprocess.Popen(
            command(place, "run"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process, console)


def stop(process: subprocess.Popen[bytes], console: Console) -> None:
    """Drain and end the daemon; kill it when it overstays."""
    if process.poll() is not None:
        return
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        message = f"The daemon did not end within {STOP_S} s of SIGTERM and was killed."
        raise DemoError(message) from None
    console.print(f"Daemon stopped in {time.monotonic() - began:.1f} s, exit status {code}.")
    if code:
        message = f"The daemon ended with status {code} where 0 was due."
        raise DemoError(message)


def wait_for_engine(place: Place, process: subprocess.Popen[bytes], console: Console) -> None:
    """Return when the engine is ready; raise when the daemon ends or the engine gives up."""
    began = time.monotonic()
    wall = time.time()
    console.print("Waiting for the engine; it takes about 50 s on 2 cores.")
    with console.status("starting") as spinner:
        while time.monotonic() - began < START_S:
            check_daemon(process)
            engine = read_engine(place, since=wall)
            if engine.get("state") == "ready":
                console.print(
                    f"Engine ready after {time.monotonic() - began:.0f} s: vLLM "
                    f"{engine.get('version')}, models {', '.join(engine.get('models', []))}"
                )
                return
            if engine.get("state") == "backoff":
                message = f"The engine did not start: {engine.get('last_error')}"
                raise DemoError(message)
            state = engine.get("state", "daemon starting")
            spinner.update(f"engine: {state}, {time.monotonic() - began:.0f} s")
            time.sleep(0.5)
    message = f"The engine was not ready within {START_S} s."
    raise DemoError(message)


def read_engine(place: Place, since: float) -> dict[str, Any]:
    """Return the engine's part of the health, {} before this daemon wrote its first."""
    try:
        status = json.loads((place.outbox / "status.json").read_bytes())
    except FileNotFoundError:
        return {}
    if status["started_at"] < since - 1:
        return {}
    return dict(status["engine"])


def check_daemon(process: subprocess.Popen[bytes]) -> None:
    """Raise when the daemon has ended."""
    if process.poll() is not None:
        message = f"The daemon ended early, exit status {process.returncode}."
        raise DemoError(message)


def send(place: Place, process: subprocess.Popen[bytes]) -> Path:
    """Drop the example under a new name, show the progress, return the job's outbox folder."""
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    drop = place.folder / "sent" / f"{name}.jsonl"
    drop.parent.mkdir(exist_ok=True)
    drop.write_bytes(EXAMPLE.read_bytes())
    arguments = command(place, "submit", str(drop), "--wait")
    submit = subprocess.Popen(arguments, env=environment())
    try:
        while submit.poll() is None:
            check_daemon(process)
            time.sleep(0.2)
    finally:
        if submit.poll() is None:
            submit.terminate()
            submit.wait()
    answers = place.outbox / name
    if not (answers / "output.jsonl").is_file():
        message = f"'submit --wait' ended with status {submit.returncode} and there are no answers."
        raise DemoError(message)
    return answers


def demo(place: Place, console: Console) -> None:
    """Run the demo in `place` from start to stop."""
    requests = demo_answers.read_lines(EXAMPLE)
    console.rule("1. the daemon and its engine")
    with daemon(place, console) as process:
        wait_for_engine(place, process, console)
        console.rule(f"2. {EXAMPLE.name}: {len(requests)} requests")
        answers = send(place, process)
        console.rule("3. the answers")
        results = demo_answers.check(requests, answers)
        demo_answers.show(requests, results, console)
        console.print(
            f"{len(results) - 1} answers in input order, the structured one fits its schema, and "
            "the prompt that is longer than the context is the one dead letter. The model is tiny, "
            "so what it says is often wrong."
        )
        console.rule("4. the health")
        subprocess.run(command(place, "status"), env=environment(), check=True)
        console.rule("5. the end")
    console.print(f"Answers        {answers}\nSpool          {place.folder / 'spool'}")
    console.print(f"Configuration  {place.config}\nLog            {place.log}")


def explain(problem: Exception, place: Place) -> None:
    """Say what went wrong, with the newest lines of the log."""
    print(f"\nThe demo failed: {problem}", file=sys.stderr)
    if place.log.is_file():
        print(f"The last lines of {place.log}:", file=sys.stderr)
        lines = place.log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(f"    {line}" for line in lines[-20:]), file=sys.stderr)
    print("Mend what they name and run `make demo` again.", file=sys.stderr)


def main() -> int:
    """Run the demo; the exit status is 0 when everything it promises was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=sorted(ARGUMENTS), default="cpu")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "demo-spool")
    options = parser.parse_args()
    place = Place(options.folder.absolute())
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 120, highlight=False, soft_wrap=not terminal)
    try:
        with alone(place):
            write_config(place, demo_model.default_folder(), options.engine)
            demo(place, console)
    except (DemoError, demo_answers.AnswerError, OSError, subprocess.CalledProcessError) as problem:
        explain(problem, place)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the daemon was stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
