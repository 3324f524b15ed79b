"""The sender's set-up in deploy/sender/, over a real sshd on loopback, both ways."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import chats
from processes import wait_until
from sshd import SENDER, WebApp, account, needs_ssh

pytestmark = needs_ssh


@pytest.fixture
def daemon(start_daemon: MakeDaemon) -> DaemonProcess:
    """Return a daemon with a ready stand-in engine."""
    return start_daemon()


@pytest.fixture
def app(tmp_path: Path, daemon: DaemonProcess) -> Iterator[WebApp]:
    """Return a web app with the two keys of deploy/sender/."""
    with account(tmp_path / "app", daemon.spool) as app:
        yield app


def test_a_job_goes_there_and_back(app: WebApp, daemon: DaemonProcess) -> None:
    """A file sent by script is taken at once, and its results are fetched as one folder."""
    lines = chats(20)
    app.send("batch", lines)
    assert wait_until(lambda: app.fetch("batch") == 0, "the results")
    daemon.check_results("batch", lines)
    there, here = daemon.spool / "outbox" / "batch", app.folder / "batch"
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {
        path.name: path.read_bytes() for path in there.iterdir()
    }


def documented(block: str) -> list[str]:
    """The commands of a block of the sender's page."""
    page = (SENDER.parent.parent / "docs" / "SENDERS.md").read_text()
    found = re.search(rf"<!-- {block} -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert found, f"docs/SENDERS.md has no block of commands marked {block}"
    return found[1].splitlines()


@pytest.mark.parametrize("block", ["round-trip", "by-hand"])
def test_the_documented_commands_work(app: WebApp, daemon: DaemonProcess, block: str) -> None:
    """The page's commands send a job and fetch its results, each tried until it succeeds."""
    lines = chats(3)
    (app.folder / "reviews.jsonl").write_bytes(b"".join(lines))
    for command in documented(block):
        words = command.split()
        wait_until(lambda words=words: app.run(*words).returncode == 0, command)  # type: ignore[misc]
        daemon.wait_outcome("reviews")
    fetched, there = app.folder / "results" / "reviews", daemon.spool / "outbox" / "reviews"
    assert (fetched / "status.json").read_bytes() == (there / "status.json").read_bytes()
    assert len((fetched / "output.jsonl").read_bytes().splitlines()) == len(lines)


def test_a_job_goes_by_the_other_lane(app: WebApp, daemon: DaemonProcess) -> None:
    """A file sent with a priority gets it."""
    app.send("urgent", chats(2), "-p", "high")
    daemon.wait_outcome("urgent")
    assert daemon.notice("urgent")["priority"] == "high"


def test_a_refusal_is_fetched_like_an_answer(app: WebApp, daemon: DaemonProcess) -> None:
    """The sender of a bad file reads why in the folder that it fetches."""
    app.send("bad", [b"no json\n"])
    assert wait_until(lambda: app.fetch("bad") == 0, "the refusal")
    assert json.loads((app.folder / "bad" / "status.json").read_bytes())["status"] == "failed"


def test_a_refusal_gives_way_to_the_results(app: WebApp, daemon: DaemonProcess) -> None:
    """A job that is sent again after its refusal is fetched, and until then is not there."""
    app.send("job", [b"no json\n"])
    assert wait_until(lambda: app.fetch("job") == 0, "the refusal")
    assert app.fetch("job") == 0
    inbox_daemon("pause", "--config", daemon.config)
    app.send("job", chats(3))
    daemon.wait_active("job")
    assert app.fetch("job") == 1
    inbox_daemon("resume", "--config", daemon.config)
    daemon.wait_outcome("job")
    assert app.fetch("job") == 0
    assert len((app.folder / "job" / "output.jsonl").read_bytes().splitlines()) == 3


def test_results_that_are_not_there_yet_are_an_error(app: WebApp, daemon: DaemonProcess) -> None:
    """Fetching a job without a folder in outbox/ ends with 1 and leaves nothing half there."""
    assert app.fetch("nothing") == 1
    assert not [path.name for path in app.folder.iterdir() if "nothing" in path.name]


def test_the_health_is_fetched(app: WebApp, daemon: DaemonProcess) -> None:
    """The key that fetches results reads the service's health too."""
    told = app.run("rsync", "gpu-outbox:status.json", "health.json")
    assert told.returncode == 0, told.stderr
    assert json.loads((app.folder / "health.json").read_bytes())["status"] == "healthy"


@pytest.mark.parametrize(
    "words",
    [
        ("ssh", "-F", "ssh_config", "gpu-inbox", "id"),
        ("ssh", "-F", "ssh_config", "gpu-outbox", "id"),
        ("rsync", "gpu-inbox:../outbox/status.json", "stolen"),
        ("rsync", "-r", "gpu-inbox:", "stolen"),
        ("rsync", "gpu-outbox:../../config.toml", "stolen"),
        ("rsync", "ssh_config", "gpu-outbox:planted.jsonl"),
        ("rsync", "-r", "--delete", "empty/", "gpu-inbox:"),
    ],
    ids=" ".join,
)
def test_the_keys_are_good_for_nothing_else(
    app: WebApp, daemon: DaemonProcess, words: tuple[str, ...]
) -> None:
    """Neither key gives a shell, another folder, or the other direction."""
    (app.folder / "empty").mkdir()
    before = sorted(path.name for path in daemon.spool.rglob("*") if path.is_dir())
    assert app.run(*words).returncode != 0
    assert not (app.folder / "stolen").exists()
    assert not (daemon.spool / "outbox" / "planted.jsonl").exists()
    assert sorted(path.name for path in daemon.spool.rglob("*") if path.is_dir()) == before
