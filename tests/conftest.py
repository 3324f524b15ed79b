"""Fixtures for tests that run real processes; each ends with its test, whatever happens."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import settings

from daemon_process import DAEMONS, DaemonProcess, MakeDaemon, StandinProcess, StartStandin
from job_files import Json
from skips import skip_line

# A machine that is busy is no fault of the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

SKIPS = pytest.StashKey[str]()
# The demo's own settings and checks are used by tests of the real engine.
sys.path.append(str(Path(__file__).parent.parent / "scripts"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """With several workers, keep tests of one xdist_group in one: they share an engine.

    What --dist=loadgroup does; a worker is not told of an option that was not typed.
    """
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"
    if getattr(config, "workerinput", {}).get("loadgroup"):
        config.option.loadgroup = True


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - a class of xdist's without a public name
    """Tell a worker how tests are dealt out."""
    node.workerinput["loadgroup"] = node.config.option.dist == "loadgroup"


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what is asynchronous on the daemon's own event loop."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the real engine, whose start takes longest, so that others run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("vllm") is None)


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401 - no public name
    """Keep for the very end what was skipped, and why."""
    stats = terminalreporter.stats
    outcomes = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
    total = sum(len(stats.get(outcome, [])) for outcome in outcomes)
    reasons = [str(report.longrepr[2]) for report in stats.get("skipped", [])]
    terminalreporter.config.stash[SKIPS] = skip_line(reasons, total)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End with one line on what was skipped."""
    line = config.stash.get(SKIPS, None)
    if line is not None:
        print(line)  # noqa: T201 - a line of the report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the daemons of a failed test said."""
    report = yield
    if report.failed:
        for daemon in item.stash.get(DAEMONS, []):
            report.sections.append((f"daemon on {daemon.spool}", daemon.report()))
    return report


@pytest.fixture
def make_daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDaemon]:
    """Make daemons that do not run yet; see DaemonProcess for the arguments."""
    made: list[DaemonProcess] = request.node.stash.setdefault(DAEMONS, [])

    def make(*options: str, **sections: Json) -> DaemonProcess:
        made.append(DaemonProcess(tmp_path / f"daemon{len(made)}", *options, **sections))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def start_daemon(make_daemon: MakeDaemon) -> MakeDaemon:
    """Start daemons with a ready stand-in engine."""

    def start(*options: str, **sections: Json) -> DaemonProcess:
        return make_daemon(*options, **sections).start()

    return start


@pytest.fixture
def sockets() -> Iterator[Path]:
    """Give a folder with a name that is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="inbox-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start_standin(tmp_path: Path) -> Iterator[StartStandin]:
    """Start stand-in engines that are no children of a daemon."""
    started: list[StandinProcess] = []

    def start(*options: str) -> StandinProcess:
        started.append(StandinProcess(tmp_path, *options))
        return started[-1]

    yield start
    for standin in started:
        standin.close()
