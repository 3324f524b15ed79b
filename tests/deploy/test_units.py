"""The files in deploy/systemd/: they fit each other, the daemon, and systemd's own judgement."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from inbox_daemon.cli import options
from inbox_daemon.contract import config
from inbox_daemon.contract.config import Config
from inbox_daemon.service import daemon
from inbox_daemon.spool import Spool

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "inbox-daemon.service"
NETWORK = SYSTEMD / "inbox-daemon-network.conf"
TMPFILES = SYSTEMD / "inbox-daemon.tmpfiles.conf"
SYSUSERS = SYSTEMD / "inbox-daemon.sysusers.conf"
MOST_EXPOSED = 1.5
DRAIN_S = 30  # what SIGTERM promises

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
needs_tmpfiles = pytest.mark.skipif(
    os.geteuid() != 0
    or not shutil.which("systemd-tmpfiles")
    or not shutil.which("systemd-sysusers"),
    reason="only root can give folders away, with systemd-sysusers and systemd-tmpfiles",
)


def settings(path: Path) -> dict[str, list[str]]:
    """Every setting of a unit file, each with all its values in order."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith(("#", "[")):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """Return the settings of the service."""
    return settings(UNIT)


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(
        ["systemd-analyze", *words], check=False, capture_output=True, text=True, timeout=60
    )


def exposure(path: Path) -> float:
    """What systemd-analyze makes of a unit: 0 is closed, 10 is open."""
    report = analyze("security", "--offline=true", "--no-pager", path).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert found, report
    return float(found[1])


@needs_analyze
def test_the_unit_is_hardened() -> None:
    """Systemd rates the exposure of the service at most 1.5 of 10."""
    assert exposure(UNIT) <= MOST_EXPOSED


@needs_analyze
def test_the_unit_is_sound(tmp_path: Path) -> None:
    """Systemd has nothing to say about the unit once its program is there."""
    text, count = re.subn(
        r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text()
    )
    assert count == 1
    (tmp_path / UNIT.name).write_text(text)
    told = analyze("verify", tmp_path / UNIT.name)
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


@needs_analyze
def test_the_network_drop_in_is_sound(tmp_path: Path) -> None:
    """With the network open, the unit is valid, and more exposed by that alone."""
    network = NETWORK.read_text().partition("[Service]\n")[2]
    text = UNIT.read_text().replace("\n[Install]", f"{network}\n[Install]")
    text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text)
    opened = tmp_path / UNIT.name
    opened.write_text(text)
    assert analyze("verify", opened).stderr == ""
    assert exposure(UNIT) < exposure(opened) < exposure(UNIT) + 1


def test_a_stop_outlasts_the_drain(unit: dict[str, list[str]]) -> None:
    """Systemd waits longer than a drain takes, and asks the daemon alone to stop."""
    assert int(unit["TimeoutStopSec"][0]) > DRAIN_S
    assert unit["KillMode"] == ["mixed"]
    assert unit["KillSignal"] == ["SIGTERM"]


def test_the_service_always_comes_back(unit: dict[str, list[str]]) -> None:
    """However often the daemon ends, systemd starts it again, but not misconfigured."""
    assert unit["Restart"] == ["always"]
    assert unit["RestartPreventExitStatus"] == [str(options.CONFIG)]
    assert unit["StartLimitIntervalSec"] == ["0"]


def test_the_service_starts_once_the_clock_is_set(unit: dict[str, list[str]]) -> None:
    """It is ordered after both targets of the clock, and pulls neither in (systemd.special(7))."""
    targets = {"time-set.target", "time-sync.target"}
    assert targets <= set(" ".join(unit["After"]).split())
    assert not targets & set(" ".join(unit["Wants"]).split())


def test_the_watchdog_outlasts_a_beat(unit: dict[str, list[str]]) -> None:
    """A daemon that beats only every so often, or is judged stalled, is not killed early."""
    longest = max(daemon.STALLED_S, 2 * Config.model_validate({}).status.interval_s)
    assert int(unit["WatchdogSec"][0]) > longest
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]


def test_the_kernel_takes_the_engine_first(unit: dict[str, list[str]]) -> None:
    """The daemon has a score of its own, and a lost engine does not end the unit."""
    assert int(unit["OOMScoreAdjust"][0]) < 0
    assert unit["OOMPolicy"] == ["continue"]


def test_the_unit_lets_the_daemon_write_where_it_does(unit: dict[str, list[str]]) -> None:
    """The one writable path below / is the default spool, and /etc holds its configuration."""
    assert unit["ReadWritePaths"] == [f"-{Config.model_fields['spool'].default}"]
    assert unit["ProtectSystem"] == ["strict"]
    folder = config.DEFAULT_PATH.parent
    assert unit["ConfigurationDirectory"] == [folder.name]
    assert unit["RuntimeDirectoryMode"] == ["0700"]


def test_the_user_is_the_same_everywhere(unit: dict[str, list[str]]) -> None:
    """The unit runs as the user that sysusers makes, and tmpfiles gives that user the spool."""
    lines = [line.split() for line in SYSUSERS.read_text().splitlines() if line[:1] == "u"]
    assert [line[1] for line in lines] == unit["User"] == unit["Group"]
    assert {(user, group) for _, user, group in folders().values()} == {(unit["User"][0],) * 2}


def folders() -> dict[Path, tuple[int, str, str]]:
    """The folders of the tmpfiles file: mode, user and group by path."""
    lines = [line.split() for line in TMPFILES.read_text().splitlines() if line[:1] == "d"]
    return {Path(path): (int(mode, 8), user, group) for _, path, mode, user, group in lines}


def modes_below(root: Path) -> dict[Path, int]:
    """The mode of a folder and of each one below it, by its path from there."""
    every = [root, *(path for path in root.rglob("*") if path.is_dir())]
    return {path.relative_to(root): stat.S_IMODE(path.stat().st_mode) for path in every}


def test_tmpfiles_makes_the_folders_that_the_daemon_would(tmp_path: Path) -> None:
    """The same folders with the same modes as `inbox-daemon init` makes, at the default place."""
    root = tmp_path / "spool"
    before = os.umask(0o022)
    try:
        Spool(root).create()
    finally:
        os.umask(before)
    default = Config.model_fields["spool"].default
    declared = {path.relative_to(default): mode for path, (mode, _, _) in folders().items()}
    assert declared == modes_below(root)


@needs_tmpfiles
@pytest.mark.root
def test_systemd_accepts_the_users_and_folders(tmp_path: Path) -> None:
    """Sysusers and tmpfiles carry their files out, on an empty root."""
    (tmp_path / "etc").mkdir()
    for tool, arguments in (("sysusers", [SYSUSERS]), ("tmpfiles", ["--create", TMPFILES])):
        command = [f"systemd-{tool}", f"--root={tmp_path}", *arguments]
        told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stderr
    for path, (mode, _, _) in folders().items():
        made = tmp_path / path.relative_to("/")
        assert stat.S_IMODE(made.stat().st_mode) == mode
        assert made.stat().st_uid != 0
