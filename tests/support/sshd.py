"""A web app's account as deploy/sender/ makes it, over a real sshd on loopback.

Invariant: sshd listens on 127.0.0.1 alone and ends with the context, or with the test's
process.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon_process import bound_to_us
from processes import wait_until

SENDER = Path(__file__).parents[2] / "deploy" / "sender"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
RRSYNC = "/usr/bin/rrsync"

needs_ssh = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("rsync") and Path(RRSYNC).exists()),
    reason="sshd, ssh, rsync and rrsync are not all installed",
)


@dataclass(frozen=True)
class WebApp:
    """The web app's machine: its ssh configuration and its folder of results."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which rsync finds the hosts, and a shell the scripts."""
        shell = f"ssh -F {self.folder / 'ssh_config'}"
        return os.environ | {"RSYNC_RSH": shell, "PATH": f"{SENDER}:{os.environ['PATH']}"}

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment,
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


@contextlib.contextmanager
def account(folder: Path, spool: Path) -> Iterator[WebApp]:
    """Give a web app whose keys are set up on a spool's machine as deploy/sender/ says."""
    folder.mkdir(mode=0o700)
    publics = [_make_key(folder / f"inbox-{use}") for use in ("send", "fetch")]
    _make_key(folder / "host")
    keys = (SENDER / "authorized_keys").read_text()
    for placeholder, public in zip(("TO-SEND", "TO-FETCH"), publics, strict=True):
        assert f"ssh-ed25519 PUBLIC-KEY-{placeholder}" in keys
        keys = keys.replace(f"ssh-ed25519 PUBLIC-KEY-{placeholder}", public)
    assert keys.count("/srv/inbox-daemon/") == 2
    (folder / "authorized_keys").write_text(keys.replace("/srv/inbox-daemon", str(spool)))
    with serve(folder):
        yield WebApp(folder)


@contextlib.contextmanager
def open_account(folder: Path) -> Iterator[tuple[WebApp, int]]:
    """Give a sender of whom nothing is restricted, and sshd's process."""
    folder.mkdir(mode=0o700)
    (folder / "authorized_keys").write_text(_make_key(folder / "inbox-send"))
    _make_key(folder / "host")
    with serve(folder, PermitRootLogin="yes", Subsystem="sftp internal-sftp") as pid:
        yield WebApp(folder), pid


@contextlib.contextmanager
def serve(folder: Path, **settings: str) -> Iterator[int]:
    """Run sshd with the keys of a folder; give its process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    _write_ssh_config(folder, port)
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen(bound_to_us(*_sshd(folder, port, settings)), stderr=log)
    try:
        wait_until(lambda: _listens(port), "sshd's port")
        yield server.pid
    finally:
        server.kill()
        server.wait()


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


def _sshd(folder: Path, port: int, more: dict[str, str]) -> list[str | Path]:
    settings: dict[str, object] = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "StrictModes": "no",
        "PermitRootLogin": "forced-commands-only",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "UsePAM": "no",
        "MaxStartups": 100,
    } | more
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    options = [word for item in settings.items() for word in ("-o", "=".join(map(str, item)))]
    return [str(SSHD), "-D", "-e", "-f", "/dev/null", *options]


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
