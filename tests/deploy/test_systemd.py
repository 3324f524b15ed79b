"""The installed service under a real systemd as PID 1, in a container of systemd-nspawn.

One boot serves all tests: inside.py installs the service by the commands of docs/INSTALL.md,
uses it, kills it, and writes down what it saw.  The unit is the real one; a drop-in says
where this machine's Python has its libraries, and for the last step makes the watchdog
less patient.
"""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]
INSIDE = CHECKOUT / "tests" / "deploy" / "inside.py"
BOOT_S = 150
# What docs/INSTALL.md and SECURITY.md say that the service can write.
WRITABLE = {
    *("/srv/inbox-daemon", "/var/cache/inbox-daemon", "/run/inbox-daemon"),
    *("/tmp", "/var/tmp"),  # of its own
    *("/dev/shm", "/dev/mqueue"),
}
Json = dict[str, Any]

TARGET = """\
[Unit]
Requires=basic.target driver.service
After=basic.target
AllowIsolate=yes
"""
DRIVER = """\
[Unit]
After=basic.target
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
WorkingDirectory=/src
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
Environment=LD_LIBRARY_PATH=/opt/python/lib
ExecStart=/opt/python/bin/python3 /src/tests/deploy/inside.py /out/facts.json
StandardOutput=append:/out/driver.log
StandardError=append:/out/driver.log
"""
DROP_IN = """\
mkdir -p /etc/systemd/system/inbox-daemon.service.d
printf '[Service]\\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\\n' \\
    >/etc/systemd/system/inbox-daemon.service.d/place.conf
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.xdist_group("nspawn"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a container"),
    pytest.mark.skipif(
        not (shutil.which("systemd-nspawn") and Path("/lib/systemd/systemd").exists()),
        reason="systemd-nspawn (Debian: systemd-container) is not installed",
    ),
]


def documented(block: str) -> str:
    """A block of the page's commands, as the machine's owner types them."""
    page = (CHECKOUT / "docs" / "INSTALL.md").read_text()
    found = re.search(rf"<!-- {block} -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert found, f"docs/INSTALL.md has no block of commands marked {block}"
    return found[1]


def lay_out(root: Path) -> list[str]:
    """Make what the container sees of this machine; return the arguments that bind it in."""
    for name in ("units", "out", "src", "venv/bin"):
        (root / name).mkdir(parents=True)
    for name in ("deploy", "tests", "inbox_daemon"):  # copies, so that all is of one moment
        shutil.copytree(
            CHECKOUT / name, root / "src" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (root / "units" / "go.target").write_text(TARGET)
    (root / "units" / "driver.service").write_text(DRIVER)
    removal = documented("uninstall-service").replace("/opt/inbox-daemon ", "")
    (root / "src" / "install-service.sh").write_text(DROP_IN + documented("install-service"))
    (root / "src" / "install-sender.sh").write_text(documented("install-sender"))
    (root / "src" / "uninstall-service.sh").write_text(removal)
    (root / "src" / "purge-service.sh").write_text(documented("purge-service"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (root / "venv" / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    (root / "venv" / "bin" / "python").symlink_to(f"/opt/python/bin/{version}")
    program = root / "venv" / "bin" / "inbox-daemon"
    program.write_text(
        "#!/opt/inbox-daemon/bin/python\nfrom inbox_daemon.cli.main import main\nmain()\n"
    )
    program.chmod(0o755)
    packages = root / "venv" / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (packages / "here.pth").write_text("/src\n/opt/packages\n")
    binds = {
        root / "units": "/run/systemd/system",
        root / "src": "/src",
        root / "venv": "/opt/inbox-daemon",
        Path(sys.base_prefix): "/opt/python",
        Path(site.getsitepackages()[0]): "/opt/packages",
    }
    assert Path(sysconfig.get_config_var("LIBDIR")).is_relative_to(sys.base_prefix)
    return [f"--bind={root / 'out'}:/out", *(f"--bind-ro={a}:{b}" for a, b in binds.items())]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Return what was seen in the container, by step."""
    root = tmp_path_factory.mktemp("machine")
    command = [
        *("systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--register=no"),
        *("--keep-unit", "--private-network", "--console=pipe", *lay_out(root)),
        *("-b", "systemd.unit=go.target", "systemd.firstboot=off"),
    ]
    with (root / "console.log").open("wb") as console:
        subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            timeout=BOOT_S,
        )
    if not (root / "out" / "driver.log").exists():
        last = (root / "console.log").read_text(errors="replace")[-500:]
        pytest.skip(f"systemd-nspawn cannot boot a container here: {last}")
    found = root / "out" / "facts.json"
    assert found.exists(), (root / "out" / "driver.log").read_text()[-3000:]
    seen: Json = json.loads(found.read_bytes())
    return seen


def seen(facts: Json, name: str) -> Json:
    """What was seen in one step; one that failed, or was not reached, fails the test."""
    found: Json = facts.get(name, {"error": "an earlier step failed"})
    assert "error" not in found, f"{found['error']}\n{facts['journal'][-6000:]}"
    return found


def test_the_documented_commands_install_it(facts: Json) -> None:
    """Each command of the page's sequence succeeds on a machine that never saw it."""
    install = seen(facts, "install")
    assert install["status"] == 0, install["words"]
    assert install["config_mode"] & 0o7 == 0


def test_the_documented_commands_make_a_senders_account(facts: Json) -> None:
    """The web app's account is in the service's group, and cannot change its own keys."""
    welcome = seen(facts, "welcome")
    assert welcome["status"] == 0, welcome["words"]
    assert "inbox-daemon" in welcome["groups"]
    assert (welcome["keys_uid"], welcome["keys_mode"]) == (0, 0o644)


def test_it_starts(facts: Json) -> None:
    """The service reaches READY within seconds and says in words what it does."""
    start = seen(facts, "start")
    assert start["state"] == "active"
    assert start["text"].startswith("idle: 0 jobs")
    assert start["started_s"] < 10
    assert start["user"] == "inbox-daemon"


def test_it_has_no_privileges_but_leases(facts: Json) -> None:
    """The daemon has CAP_LEASE alone and its engine none; a system-call filter is on."""
    start = seen(facts, "start")
    assert int(start["walls"]["capabilities"], 16) == 0
    assert int(start["capabilities"], 16) == 1 << 28
    assert start["no_new_privileges"] == "1"
    assert start["seccomp"] == "2"


def test_it_writes_nowhere_else(facts: Json) -> None:
    """The engine, its child, can write where the unit says, wherever it tries, and nowhere else."""
    walls = seen(facts, "start")["walls"]
    assert set(walls["writable"]) == WRITABLE
    assert not walls["sees_homes"]
    assert not walls["mounts"]
    assert not walls["sets_uid"]
    assert walls["home"] == "/var/cache/inbox-daemon"


def test_it_sees_what_a_checked_clock_needs(facts: Json) -> None:
    """Which boot this is, and whether the clock was synchronised."""
    walls = seen(facts, "start")["walls"]
    assert walls["knows_boot"]
    assert walls["sees_synchronisation"]


def test_it_is_cut_off_from_the_network(facts: Json) -> None:
    """There is no network for it but a loopback, and no host can be reached."""
    walls = seen(facts, "start")["walls"]
    assert walls["interfaces"] == ["lo"]
    assert not walls["reaches_network"]


def test_it_opens_no_port_and_no_connection(facts: Json) -> None:
    """After a job, no socket of the network exists where it lives: none listens, none talks."""
    use = seen(facts, "use")
    assert use["internet"] == []
    assert use["sockets"]["held"] > 0
    assert use["sockets"]["internet"] == []


def test_it_opens_no_port_with_the_network_either(facts: Json) -> None:
    """In the machine's own network it holds no socket but those of its own folder."""
    sockets = seen(facts, "hang")["sockets"]
    assert sockets["held"] > 0
    assert sockets["internet"] == []


def test_its_socket_is_private(facts: Json) -> None:
    """The engine's socket is there, and a member of the service's group cannot get at it."""
    start = seen(facts, "start")
    assert start["runtime_mode"] == 0o700
    assert start["socket"]["name"].startswith("/run/inbox-daemon/")
    assert start["socket"]["by_root"]
    assert start["socket"]["listed"] == []
    assert not start["socket"]["by_sender"]


def test_the_kernel_would_take_the_engine_first(facts: Json) -> None:
    """Short of memory, each process of the engine is a better choice than the daemon."""
    start = seen(facts, "start")
    daemon, *engine = start["oom"]
    assert daemon["oom_score_adj"] == (-500 if start["lowers"] else 0)
    assert engine
    for process in engine:
        assert process["oom_score_adj"] == 500
        assert process["oom_score"] > daemon["oom_score"]


def test_a_member_of_its_group_sends_and_fetches(facts: Json) -> None:
    """A sender drops a file and reads the answers, and neither sees nor removes the rest."""
    use = seen(facts, "use")
    assert use["answers"] == [f"r{n}" for n in range(5)]
    assert use["forbidden"] == []
    assert not use["removable"]


def test_it_makes_its_lanes_again(facts: Json) -> None:
    """If the lanes of inbox/ are removed, they come back with the group's rights."""
    mend = seen(facts, "mend")
    assert mend["modes"] == [0o2770] * 2
    assert mend["answers"] == 2


def test_it_stops_at_a_bad_configuration(facts: Json) -> None:
    """A configuration that cannot be used fails the unit once, and a mended one starts it."""
    misconfigure = seen(facts, "misconfigure")
    assert (misconfigure["state"], misconfigure["mended"]) == ("failed", "active")


def test_it_comes_back_after_a_kill(facts: Json) -> None:
    """Killed in the middle of a job, the daemon is started again and finishes it."""
    kill = seen(facts, "kill")
    assert kill["restarts"] == "1"
    assert kill["answers"] == 120


def test_a_dying_engine_is_no_failure(facts: Json) -> None:
    """However often the engine is killed, it is the same daemon and an active service."""
    crash = seen(facts, "crash_engine")
    assert crash["same_daemon"]
    assert crash["state"] == "active"


def test_a_stop_drains(facts: Json) -> None:
    """A stop in the middle of a job ends within its time, cleanly; a start resumes the job."""
    stop = seen(facts, "stop")
    assert stop["stopped_s"] < 30
    assert (stop["state"], stop["result"], stop["left"]) == ("inactive", "success", "")
    assert stop["answers"] == 120


def test_a_hang_is_ended(facts: Json) -> None:
    """A daemon that stops beating is killed by the watchdog and started again."""
    hang = seen(facts, "hang")
    assert hang["restarted"]
    assert hang["state"] == "active"


def test_the_drop_in_opens_the_network(facts: Json) -> None:
    """With inbox-daemon-network.conf the daemon is in the machine's own network."""
    assert seen(facts, "hang")["network_shared"]


def test_the_documented_commands_remove_it(facts: Json) -> None:
    """The service goes, with its processes, and the results stay."""
    uninstall = seen(facts, "uninstall")
    assert uninstall["status"] == 0, uninstall["words"]
    assert uninstall["known"] in {"", "not-found"}
    assert uninstall["left"] == ""
    assert {"first", "killed", "stopped", "status.json"} <= set(uninstall["spool"])


def test_the_documented_commands_remove_the_rest(facts: Json) -> None:
    """Users, groups, spool and configuration go when the machine's owner says so."""
    purge = seen(facts, "purge")
    assert purge["status"] == 0, purge["words"]
    assert (purge["users"], purge["groups"], purge["files"]) == ("", "", [])
