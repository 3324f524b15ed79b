"""The sender's set-up in deploy/sender/, over a real sshd on loopback, both ways."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import MakeDaemon
from harness import DaemonProcess
from harness_jobs import chats
from harness_processes import wait_until

SENDER = Path(__file__).parent.parent / "deploy" / "sender"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
RRSYNC = "/usr/bin/rrsync"

pytestmark = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("rsync") and Path(RRSYNC).exists()),
    reason="sshd, ssh, rsync and rrsync are not all installed",
)


@dataclass(frozen=True)
class WebApp:
    """The web app's machine: its ssh configuration and its folder of results."""

    folder: Path

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        shell = f"ssh -F {self.folder / 'ssh_config'}"
        return subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"RSYNC_RSH": shell, "PATH": f"{SENDER}:{os.environ['PATH']}"},
            cwd=self.folder,
        )

    def send(self, name: str, lines: list[bytes], *options: str) -> None:
        """Send a job with the script."""
        path = self.folder / f"{name}.jsonl"
        path.write_bytes(b"".join(lines))
        told = self.run(SENDER / "inbox-send", *options, "gpu-inbox", path)
        assert told.returncode == 0, told.stderr

    def fetch(self, name: str) -> int:
        """Ask for a job's results with the script; return its exit status."""
        told = self.run(SENDER / "inbox-fetch", "gpu-outbox", name, self.folder)
        assert told.returncode in {0, 1}, told.stderr
        return told.returncode


@pytest.fixture
def daemon(start_daemon: MakeDaemon) -> DaemonProcess:
    """Return a daemon with a ready stand-in engine."""
    return start_daemon()


@pytest.fixture
def app(tmp_path: Path, daemon: DaemonProcess) -> Iterator[WebApp]:
    """Return a web app whose keys are set up on the daemon's machine as deploy/sender/ says."""
    folder = tmp_path / "app"
    folder.mkdir(mode=0o700)
    publics = [_make_key(folder / f"inbox-{use}") for use in ("send", "fetch")]
    _make_key(folder / "host")
    keys = (SENDER / "authorized_keys").read_text()
    for placeholder, public in zip(("TO-SEND", "TO-FETCH"), publics, strict=True):
        assert f"ssh-ed25519 PUBLIC-KEY-{placeholder}" in keys
        keys = keys.replace(f"ssh-ed25519 PUBLIC-KEY-{placeholder}", public)
    assert keys.count("/srv/inbox-daemon/") == 2
    (folder / "authorized_keys").write_text(keys.replace("/srv/inbox-daemon", str(daemon.spool)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    _write_ssh_config(folder, port)
    server = subprocess.Popen(_sshd(folder, port), stderr=subprocess.PIPE)
    try:
        wait_until(lambda: _listens(port), "sshd's port")
        yield WebApp(folder)
    finally:
        server.kill()
        server.communicate()


def _make_key(path: Path) -> str:
    command: list[str | Path] = [
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "",
        "-f",
        path,
    ]
    subprocess.run(command, check=True, timeout=60)
    return path.with_suffix(".pub").read_text().strip()


def _write_ssh_config(folder: Path, port: int) -> None:
    text = (SENDER / "ssh_config").read_text()
    text = text.replace("gpu.example", f"127.0.0.1\n    Port {port}")
    text = text.replace("inbox-sender", getpass.getuser()).replace("~/.ssh/", f"{folder}/")
    known = f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}"
    (folder / "known_hosts").write_text(known)
    (folder / "ssh_config").write_text(
        f"{text}\nHost *\n    UserKnownHostsFile {folder}/known_hosts\n"
    )


def _sshd(folder: Path, port: int) -> list[str | Path]:
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "StrictModes": "no",
        "PermitRootLogin": "forced-commands-only",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "UsePAM": "no",
    }
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    options = [word for item in settings.items() for word in ("-o", "=".join(map(str, item)))]
    return [str(SSHD), "-D", "-e", "-f", "/dev/null", *options]


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


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
    """The commands of a block of the README."""
    readme = (SENDER.parent.parent / "README.md").read_text()
    found = re.search(rf"<!-- {block} -->\n```sh\n(.*?)```", readme, re.DOTALL)
    assert found, f"README.md has no block of commands marked {block}"
    return found[1].splitlines()


@pytest.mark.parametrize("block", ["round-trip", "by-hand"])
def test_the_documented_commands_work(app: WebApp, daemon: DaemonProcess, block: str) -> None:
    """The README's commands send a job and fetch its results, each tried until it succeeds."""
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


def test_results_that_are_not_there_yet_are_told_apart(app: WebApp, daemon: DaemonProcess) -> None:
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
