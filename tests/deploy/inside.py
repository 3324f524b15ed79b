"""Look at the installed service from inside the machine that test_deploy_systemd.py boots.

Run as root by that machine's systemd: `deploy_inside.py FACTS` installs the service by the
own commands of docs/INSTALL.md, uses it, hurts it, and writes what it saw as one JSON document.
Run by the service itself: `deploy_inside.py probe SOCKET` is its engine, which first tries
what it should not be able to do.  Only the standard library is used here.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SERVICE = "inbox-daemon"
SOURCE = Path("/src")
SPOOL = Path("/srv/inbox-daemon")
CACHE = Path("/var/cache/inbox-daemon")
PYTHON = "/opt/inbox-daemon/bin/python"
CONFIG = Path("/etc/inbox-daemon/config.toml")
SENDER_UID, SENDER_GID = 4000, 4000
# As systemd-timesyncd leaves it.
SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
PATIENCE_S = 25.0
Json = dict[str, Any]


# -- the engine, which tries the walls ----------------------------------------------------


def probe(address: str) -> None:
    """Note what the unit lets its child do, then become a stand-in engine."""
    walls = {
        "writable": writable_folders(),
        "sees_homes": bool(_listed("/root") or _listed("/home")),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "reaches_network": _succeeds(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
        "mounts": _succeeds(
            lambda: subprocess.run(
                ["mount", "--bind", "/tmp", "/tmp"], check=True, stderr=subprocess.DEVNULL
            )
        ),
        "sets_uid": _succeeds(lambda: os.setuid(0)),
        "home": os.environ.get("HOME"),
        "capabilities": fields_of(os.getpid())["CapEff"],
        "knows_boot": bool(Path("/proc/sys/kernel/random/boot_id").read_text()),
        "sees_synchronisation": SYNCHRONISED.exists(),
    }
    (CACHE / "walls.json").write_text(json.dumps(walls))
    words = (
        str(SOURCE / "tests" / "support" / "standin.py"),
        "--socket",
        address,
        "--latency",
        "0.1",
    )
    os.execv(sys.executable, [sys.executable, *words, "--slots", "4"])  # noqa: S606 - it becomes that


def writable_folders() -> list[str]:
    """Every folder in which this process can make a file, the topmost of each tree.

    Only below mounts that are not read-only can there be one; /proc has none.
    """
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = {row[4]: row for row in rows}  # of two on one place the last is seen
    found: set[str] = set()
    for place, row in mounts.items():
        if "rw" in row[5].split(",") and " proc " not in f" {row[row.index('-') + 1]} ":
            for folder, below, _ in os.walk(place):
                below[:] = [name for name in below if os.path.join(folder, name) not in mounts]  # noqa: PTH118
                if _touchable(folder):
                    found.add(folder)
                    below.clear()
    return sorted(found)


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _touchable(folder: str | Path) -> bool:
    path = Path(folder) / "probe"
    return _succeeds(path.touch) and _succeeds(path.unlink)


def _listed(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208 - names are enough
    return []


def fields_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


# -- the machine's owner and its sender -----------------------------------------------------


def run(*words: str, check: bool = True) -> str:
    """Run a command and return what it says."""
    told = subprocess.run(words, check=False, capture_output=True, text=True)
    if check and told.returncode:
        message = f"{words} ended with {told.returncode}: {told.stdout}{told.stderr}"
        raise RuntimeError(message)
    return told.stdout.strip()


def shown(name: str) -> str:
    """One property of the service."""
    return run("systemctl", "show", SERVICE, "-p", name, "--value")


def main_pid() -> int:
    """The daemon's process, 0 when it does not run."""
    return int(shown("MainPID"))


def wait(look: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever was looked for
    """Look until something is seen; return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            message = f"not seen within {PATIENCE_S:g} s: {what}"
            raise RuntimeError(message)
        time.sleep(0.1)
    return found


def status() -> Json:
    """The newest health document of the daemon that runs now, {} before its first."""
    with contextlib.suppress(FileNotFoundError):
        document: Json = json.loads((SPOOL / "outbox" / "status.json").read_bytes())
        if document["pid"] == main_pid():
            return document
    return {}


def engine_ready() -> bool:
    """Return whether the daemon that runs now has its engine."""
    return bool(status().get("engine", {}).get("state") == "ready")


@contextlib.contextmanager
def as_sender() -> Iterator[None]:
    """Be a member of the service's group, and of no other, for a while."""
    group = int(run("id", "-g", SERVICE))
    os.setgroups([group])
    os.setegid(SENDER_GID)
    os.seteuid(SENDER_UID)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([0])


def drop(name: str, count: int) -> None:
    """Drop a job as a sender's rsync does."""
    lines = [
        {"custom_id": f"r{n}", "url": "/v1/completions", "body": {"prompt": f"{name} {n}"}}
        for n in range(count)
    ]
    hidden = SPOOL / "inbox" / f".{name}.jsonl.part"
    with as_sender():
        hidden.write_text("".join(json.dumps(line) + "\n" for line in lines))
        hidden.chmod(0o640)
        hidden.rename(SPOOL / "inbox" / f"{name}.jsonl")


def answered(name: str) -> list[str]:
    """Wait for a job's results and read them as the sender."""
    path = SPOOL / "outbox" / name / "output.jsonl"
    wait(path.exists, f"the results of {name}")
    with as_sender():
        return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def in_the_middle(name: str) -> None:
    """Wait until a job has some of its results, committed."""

    def look() -> bool:
        jobs = [job for job in status().get("jobs", []) if job["name"] == name]
        return bool(jobs and 0 < jobs[0]["completed"] < jobs[0]["requests"])

    wait(look, f"{name} in the middle")


# -- what is looked at ------------------------------------------------------------------------


def follow(name: str) -> subprocess.CompletedProcess[str]:
    """Run a block of the page's commands, in the checkout."""
    words = ["bash", "-euxc", (SOURCE / f"{name}.sh").read_text()]
    return subprocess.run(words, check=False, capture_output=True, text=True, cwd=SOURCE)


def install() -> Json:
    """Install the service by the page's commands, and give it the probing engine."""
    told = follow("install-service")
    words = [PYTHON, str(SOURCE / "tests" / "deploy" / "inside.py"), "probe", "{socket}"]
    CONFIG.write_text(
        f"[engine]\ncommand = {json.dumps(words)}\nmodel = 'standin'\n"
        "[intake]\nsettle_s = 0.2\nscan_interval_s = 0.5\n[status]\ninterval_s = 1\n"
    )
    return {"status": told.returncode, "words": told.stderr, "config_mode": CONFIG.stat().st_mode}


def engine_pids() -> list[int]:
    """The processes below the daemon."""
    return [int(pid) for pid in run("pgrep", "-P", str(main_pid())).split()]


def links_of(pid: int) -> list[str]:
    """What a process holds open, but for what it closes while we look."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(path))  # noqa: PTH115 - not a path
    return links


def sockets_of(pids: list[int]) -> Json:
    """The sockets that processes hold: how many of the network, and the Unix ones' names."""
    links = [link for pid in pids for link in links_of(pid)]
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    table = Path(f"/proc/{pids[0]}/net")
    internet = [
        f"{kind} {row[1]}"
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
        for row in (line.split() for line in (table / kind).read_text().splitlines()[1:])
        if row[9] in inodes
    ]
    rows = [line.split() for line in (table / "unix").read_text().splitlines()[1:]]
    names = sorted({row[7] for row in rows if row[6] in inodes and len(row) > 7})
    return {"held": len(inodes), "internet": internet, "unix": names}


def everything_in(pid: int) -> list[str]:
    """Every network socket in a process's network namespace, whatever process holds it."""
    kinds = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
    tables = {kind: Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:] for kind in kinds}
    return [f"{kind} {line.strip()}" for kind, lines in tables.items() for line in lines]


def looked_into_by_sender() -> Json:
    """What a member of the group sees of the engine's socket."""
    [name] = [name for name in sockets_of([main_pid(), *engine_pids()])["unix"] if "engine" in name]

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as attempt:
            attempt.connect(name)

    reachable = _succeeds(connect)
    with as_sender():
        seen, connected = _listed("/run/inbox-daemon"), _succeeds(connect)
    return {"name": name, "by_root": reachable, "listed": seen, "by_sender": connected}


def oom_of(pid: int) -> Json:
    """How readily the kernel would take a process, short of memory."""
    names = ("oom_score_adj", "oom_score")
    return {name: int(Path(f"/proc/{pid}/{name}").read_text()) for name in names}


def may_lower_scores() -> bool:
    """Return whether systemd has CAP_SYS_RESOURCE here, without which no score goes below 0."""
    return bool(int(fields_of(1)["CapEff"], 16) >> 24 & 1)


def start() -> Json:
    """Start the service, and look at it."""
    SYNCHRONISED.parent.mkdir(exist_ok=True)
    SYNCHRONISED.touch()
    began = time.monotonic()
    run("systemctl", "enable", "--now", SERVICE)
    started_s = time.monotonic() - began
    wait(engine_ready, "a ready engine")
    pid = main_pid()
    fields = fields_of(pid)
    return {
        "started_s": started_s,
        "state": shown("ActiveState"),
        "text": wait(lambda: shown("StatusText"), "a STATUS"),
        "user": run("ps", "-o", "user=", "-p", str(pid)),
        "capabilities": fields["CapEff"],
        "no_new_privileges": fields["NoNewPrivs"],
        "seccomp": fields["Seccomp"],
        "lowers": may_lower_scores(),
        "oom": [oom_of(number) for number in (pid, *engine_pids())],
        "runtime_mode": Path("/run/inbox-daemon").stat().st_mode & 0o7777,
        "socket": looked_into_by_sender(),
        "walls": json.loads((CACHE / "walls.json").read_text()),
    }


def use() -> Json:
    """Send a job and fetch its results, as the sender."""
    drop("first", 5)
    answers = answered("first")
    with as_sender():
        forbidden = [name for name in ("running", "queued", "ledger") if _listed(str(SPOOL / name))]
        removable = _succeeds((SPOOL / "outbox" / "first" / "output.jsonl").unlink)
    processes = [main_pid(), *engine_pids()]
    return {
        "answers": answers,
        "forbidden": forbidden,
        "removable": removable,
        "internet": everything_in(processes[0]),
        "sockets": sockets_of(processes),
    }


def mend() -> Json:
    """Remove the lanes of inbox/, as a sender's script might, and send again."""
    lanes = [SPOOL / "inbox" / "high", SPOOL / "inbox" / "low"]
    for lane in lanes:
        lane.rmdir()
    wait(lambda: all(lane.exists() for lane in lanes), "other lanes")
    modes = [lane.stat().st_mode & 0o7777 for lane in lanes]
    drop("mended", 2)
    return {"modes": modes, "answers": len(answered("mended"))}


def misconfigure() -> Json:
    """Start it with a configuration that cannot be used, and mend that."""
    good = CONFIG.read_text()
    run("systemctl", "stop", SERVICE)
    CONFIG.write_text("[engin]\n")
    run("systemctl", "start", SERVICE, check=False)
    state = wait(lambda: shown("ActiveState") == "failed" and "failed", "a failed unit")
    CONFIG.write_text(good)
    run("systemctl", "start", SERVICE)
    return {"state": state, "mended": shown("ActiveState")}


def kill() -> Json:
    """Kill the daemon in the middle of a job."""
    drop("killed", 120)
    in_the_middle("killed")
    before = main_pid()
    os.kill(before, signal.SIGKILL)
    wait(lambda: main_pid() not in {0, before}, "another daemon")
    return {"answers": len(set(answered("killed"))), "restarts": shown("NRestarts")}


def crash_engine() -> Json:
    """Kill the engine again and again: that is the daemon's business, not systemd's."""
    before = main_pid(), shown("NRestarts")
    for number in range(4):
        wait(engine_ready, "a ready engine")
        drop(f"crash-{number}", 1)  # one that has answered is started again at once
        answered(f"crash-{number}")
        for child in engine_pids():
            os.kill(child, signal.SIGKILL)
        wait(lambda: not engine_ready(), "the engine's loss")
    wait(engine_ready, "a ready engine")
    return {
        "same_daemon": before == (main_pid(), shown("NRestarts")),
        "state": shown("ActiveState"),
    }


def stop() -> Json:
    """Stop the service in the middle of a job, and start it again."""
    drop("stopped", 120)
    in_the_middle("stopped")
    began = time.monotonic()
    run("systemctl", "stop", SERVICE)
    stopped_s = time.monotonic() - began
    state, result = shown("ActiveState"), shown("Result")
    left = run("pgrep", "-u", SERVICE, check=False)
    run("systemctl", "start", SERVICE)
    answers = len(set(answered("stopped")))
    return {
        "stopped_s": stopped_s,
        "state": state,
        "result": result,
        "left": left,
        "answers": answers,
    }


def hang() -> Json:
    """Freeze the daemon, with a watchdog that does not wait for a minute."""
    folder = Path("/etc/systemd/system/inbox-daemon.service.d")
    folder.mkdir(exist_ok=True)
    quick = "[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\nRestartSec=1\n"
    (folder / "quick.conf").write_text(quick)
    network = SOURCE / "deploy" / "systemd" / "inbox-daemon-network.conf"
    (folder / "network.conf").write_bytes(network.read_bytes())
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", SERVICE)
    wait(engine_ready, "a ready engine")
    before = main_pid()
    network_shared = Path(f"/proc/{before}/ns/net").readlink() == Path("/proc/1/ns/net").readlink()
    drop("opened", 5)
    answered("opened")
    sockets = sockets_of([before, *engine_pids()])
    os.kill(before, signal.SIGSTOP)
    wait(lambda: main_pid() not in {0, before} and engine_ready(), "another daemon")
    return {
        "restarted": True,
        "state": shown("ActiveState"),
        "network_shared": network_shared,
        "sockets": sockets,
    }


def welcome() -> Json:
    """Make a web app's account."""
    told = follow("install-sender")
    keys = Path("/var/lib/inbox-sender/.ssh/authorized_keys")
    return {
        "status": told.returncode,
        "words": told.stderr,
        "groups": run("id", "-nG", "inbox-sender").split(),
        "keys_mode": keys.stat().st_mode & 0o7777,
        "keys_uid": keys.stat().st_uid,
    }


def uninstall() -> Json:
    """Remove the service by the page's commands, but for the program, a mount here."""
    told = follow("uninstall-service")
    return {
        "status": told.returncode,
        "words": told.stderr,
        "known": run("systemctl", "is-enabled", SERVICE, check=False),
        "spool": sorted(path.name for path in (SPOOL / "outbox").iterdir()),
        "left": run("pgrep", "-u", SERVICE, check=False),
    }


def purge() -> Json:
    """Remove the rest by the page's commands: users, spool, configuration."""
    told = follow("purge-service")
    places = [Path(place) for place in ("/etc", "/srv", "/var/lib", "/var/cache", "/run")]
    return {
        "status": told.returncode,
        "words": told.stderr,
        "users": run("getent", "passwd", SERVICE, "inbox-sender", check=False),
        "groups": run("getent", "group", SERVICE, "inbox-sender", check=False),
        "files": [str(path) for place in places for path in place.rglob("*inbox-*")],
    }


def main(facts: Path) -> None:
    """Do everything in turn, up to the first that fails."""
    found: Json = {}
    steps = (install, welcome, start, use, mend, kill, crash_engine, stop, misconfigure, hang)
    for step in (*steps, uninstall, purge):
        began = time.monotonic()
        try:
            found[step.__name__] = step()
        except Exception as error:  # noqa: BLE001 - a failure is a fact, too
            found[step.__name__] = {"error": repr(error)}
        found[step.__name__]["took_s"] = round(time.monotonic() - began, 1)
        found["journal"] = run("journalctl", "--no-pager", "-u", SERVICE, "-n", "200")
        facts.write_text(json.dumps(found))
        if "error" in found[step.__name__]:
            break


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        probe(sys.argv[2])
    else:
        main(Path(sys.argv[1]))
