"""Architecture: which module may do what, read from the code itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "inbox_daemon"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

# Which room may import which, besides itself; the source is DESIGN.md's map of rooms.
MAY = {
    "contract": "",
    "request": "contract",
    "spool": "contract",
    "engine": "contract",
    "ledger": "contract spool",
    "gpu": "contract engine",
    "jobs": "contract request spool ledger",
    "publish": "contract request spool ledger jobs",
    "intake": "contract request spool ledger jobs",
    "report": "contract jobs engine gpu",
    "run": "contract request spool ledger jobs engine gpu publish",
    "service": "contract request spool ledger jobs engine gpu publish intake run report",
    "cli": "contract request spool ledger publish intake report service",
}
# The files that lie beside the rooms.
FLAT = {"__init__.py", "__main__.py", "default.toml", "py.typed"}
# Rooms that look at nothing, but for the files named here: the configuration is read from
# the environment and a file, and a validation opens the one path that it is given.
PURE_ROOMS = {"contract": {"config.py"}, "request": {"validation.py"}}
# What decides and returns, in rooms that do more than that.
PURE = (
    "engine/base.py",
    "engine/congestion.py",
    "engine/evidence.py",
    "engine/load.py",
    "engine/window.py",
    "gpu/energy.py",
    "gpu/governor.py",
    "gpu/heat.py",
    "intake/settling.py",
    "jobs/clock.py",
    "jobs/ordering.py",
    "run/dead_letters.py",
    "run/outcomes.py",
    "run/poison.py",
    "service/stalls.py",
)
# These know the type of what others hold: a sample, an entry's signature, a running job.
KNOW_A_TYPE = {"gpu/governor.py", "intake/settling.py", "run/dead_letters.py"}
IMPURE = {"os", "time", "asyncio", "socket", "threading", "subprocess", "shutil", "signal"}
IMPURE |= {"lmdb", "aiohttp", "watchdog", "pynvml", "sdnotify", "random", "tempfile", "datetime"}

# The calls that make something last or go, and the modules in which they may stand.
LASTING = {
    "rename",
    "replace",
    "renames",
    "renameat2",
    "unlink",
    "remove",
    "rmdir",
    "rmtree",
    "removedirs",
    "fsync",
    "fdatasync",
    "truncate",
    "ftruncate",
    "symlink",
    "link",
    "move",
    "sync",
}


@cache
def tree(name: str) -> ast.Module:
    """A module's syntax."""
    return ast.parse((PACKAGE / name).read_text("utf-8"), name)


@cache
def imports(name: str) -> frozenset[str]:
    """The full names of all that a module imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def importers(library: str) -> set[str]:
    """The modules that import a library."""
    return {
        name for name in NAMES if any(found.split(".")[0] == library for found in imports(name))
    }


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def room_of(name: str) -> str:
    """The room of a module, or its own name where it lies beside them."""
    return name.partition("/")[0]


@cache
def own_imports(name: str) -> frozenset[str]:
    """The modules of this package that a module imports, as paths below the package."""
    wanted: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {full for full in within if path_of(full)}
            wanted |= modules | ({node.module} if modules != within else set())
    return frozenset(path for full in wanted if (path := path_of(full)) and path != name)


def path_of(full: str) -> str | None:
    """A module's path below the package; None where the name is none of its modules."""
    if not full.startswith("inbox_daemon."):
        return None
    stem = full.removeprefix("inbox_daemon.").replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in NAMES), None)


PURE_MODULES = sorted(
    {*PURE}
    | {
        name
        for name in NAMES
        if name.partition("/")[2] not in PURE_ROOMS.get(room_of(name), {name.partition("/")[2]})
    }
)


def test_the_package_is_its_rooms() -> None:
    """Beside the thirteen rooms lie four files, so that each module has a place."""
    lying = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert lying == MAY.keys() | FLAT


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in name])
def test_a_room_imports_what_it_may(name: str) -> None:
    """A room knows the rooms below it that its table names, and none above."""
    room = room_of(name)
    reached = {room_of(found) for found in own_imports(name)} - {room, "__init__.py"}
    assert reached <= set(MAY[room].split())


@pytest.mark.parametrize("room", sorted(MAY))
def test_a_room_says_what_it_may_import(room: str) -> None:
    """The docstring of each room names the rooms of the table."""
    words = ast.get_docstring(tree(f"{room}/__init__.py")) or ""
    told = words.partition("May import: ")[2].partition("\n")[0].rstrip(".")
    if told == "every room but cli":
        told = ", ".join(MAY.keys() - {"cli", room})
    assert set(told.split(", ")) - {"nothing"} == set(MAY[room].split())


@pytest.mark.parametrize("room", [*sorted(MAY), "engine/process"])
def test_a_room_lists_its_files(room: str) -> None:
    """The docstring of each room lists its modules with a line each, and no other."""
    words = ast.get_docstring(tree(f"{room}/__init__.py")) or ""
    listed = {line.split()[0] for line in words.splitlines() if re.match(r" {4}\w+\.py +\S", line)}
    lying = {path.name for path in (PACKAGE / room).glob("*.py")} - {"__init__.py"}
    assert listed == lying


@pytest.mark.parametrize("name", PURE_MODULES)
def test_a_pure_module_looks_at_nothing(name: str) -> None:
    """No clock, no file, no thread and no network is imported where only decisions are made."""
    roots = {found.split(".")[0] for found in imports(name)}
    assert not roots & IMPURE


def transitive(name: str, seen: set[str]) -> set[str]:
    """A module with all that it imports of this package, and so on."""
    if name not in seen:
        seen.add(name)
        for found in own_imports(name):
            if not found.endswith("__init__.py"):  # a room's front door, not what is used of it
                transitive(found, seen)
    return seen


@pytest.mark.parametrize("name", sorted({*PURE_MODULES} - KNOW_A_TYPE))
def test_a_pure_module_builds_on_pure_ones(name: str) -> None:
    """What a pure module imports is pure as well, but for the configuration's own reading."""
    assert transitive(name, set()) - {"contract/config.py"} <= {*PURE_MODULES}


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("lmdb", {f"ledger/{name}.py" for name in ("store", "dead", "ended", "jobs", "lines")}),
        ("pynvml", {"gpu/nvml.py"}),
        ("aiohttp", {"engine/client.py"}),
        ("watchdog", {"intake/watch.py"}),
        ("sdnotify", {"service/daemon.py"}),
        ("rich", {"cli/display.py", "cli/progress.py"}),
        ("typer", {"cli/main.py", "cli/options.py", "cli/dead.py"}),
        ("ctypes", {"spool/durable.py", "engine/process/launch.py", "service/start.py"}),
        ("fcntl", {"spool/durable.py"}),
        ("prometheus_client", {"engine/load.py"}),
    ],
)
def test_a_library_has_one_home(library: str, homes: set[str]) -> None:
    """Each effect is behind one module's words, so that it can be changed in one place."""
    assert importers(library) <= homes
    assert importers(library)


def calls(name: str) -> set[str]:
    """The lasting calls of a module: `x.unlink()`, but not `text.replace(a, b)`."""
    found = set()
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, called = ast.unparse(node.func.value), node.func.attr
        if called not in LASTING or owner in {"durable", "dataclasses", "self.spool", "spool"}:
            continue
        if called in {"replace", "remove", "move", "link", "sync"} and owner not in {
            "os",
            "shutil",
        }:
            continue  # of texts, lists and the like; Path.replace is caught by its review
        found.add(f"{owner}.{called}")
    return found


def test_what_an_endpoint_is_stays_with_the_engine() -> None:
    """Outside of engine/ nothing reads `[endpoint] url`: the engine knows its kind."""
    readers = {name for name in NAMES if re.search(r"endpoint\.url", (PACKAGE / name).read_text())}
    assert {room_of(name) for name in readers} <= {"engine"}


ALLOWED = {
    # A journal is cut to what was committed, which is only ever less than was promised.
    "jobs/files.py": {"os.ftruncate"},
    # Sockets, start notes and logs of an engine: they need not survive anything.
    "engine/process/child.py": None,
    "engine/process/servers.py": None,
    "engine/process/session.py": None,
    # The files of a folder that is being built, each by its own descriptor.
    "publish/folder.py": {"os.fsync"},
    # The submitter's hidden file, which no other process knows of.
    "spool/inbox.py": {"hidden.unlink"},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "spool/durable.py"])
def test_what_lasts_is_made_to_last_in_one_module(name: str) -> None:
    """Only durable.py renames, syncs and removes, so the safe order has one home."""
    allowed = ALLOWED.get(name, set())
    if allowed is not None:
        assert calls(name) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_a_module_says_its_purpose(name: str) -> None:
    """Each module's docstring begins with what it is for; the larger ones name it as such."""
    words = ast.get_docstring(tree(name))
    assert words
    if len((PACKAGE / name).read_text().splitlines()) > 80 and not name.endswith("__init__.py"):
        assert "Purpose" in words


@pytest.mark.parametrize("name", NAMES)
def test_no_function_is_long(name: str) -> None:
    """A function that needs more than 60 lines is two functions."""
    long = {
        function.name: length
        for function in functions(name)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > 60
    }
    assert long == {}


def test_the_package_has_no_circle_of_imports() -> None:
    """No module needs itself to be imported, so each can be read alone."""
    below = {name: own_imports(name) for name in NAMES}
    while below:
        free = {name for name, needs in below.items() if not needs & below.keys()}
        assert free, f"circle among {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


# Modules without a test file of their name, each with what tests it instead.
TESTED_ELSEWHERE = {
    "cli/dead.py": "cli/test_reading.py and e2e/test_control.py, by the real command line",
    "cli/main.py": "cli/test_main_*.py and cli/test_reading.py, by the real command line",
    "cli/progress.py": "cli/test_display.py, beside the tables",
    "contract/documents.py": "house/test_schemas.py, against the published schemas",
    "contract/errors.py": "where each error is raised",
    "contract/facts.py": "plain data, in report/test_status.py",
    "contract/health_documents.py": "report/test_status.py, each document by its schema",
    "contract/hindrances.py": "run/test_hindrance.py and house/test_docs.py",
    "contract/json_schemas.py": "house/test_schemas.py",
    "contract/names.py": "intake/test_gate.py, with real files of such names",
    "engine/base.py": "plain data and a protocol; engine/test_kinds.py",
    "engine/health.py": "engine/test_supervisor.py, with real servers that sicken and go",
    "engine/load.py": "engine/test_client.py, with real metrics",
    "engine/process/launch.py": "engine/process/test_child.py, in real processes",
    "engine/process/servers.py": "engine/test_kinds.py and engine/test_forms.py",
    "intake/redrive.py": "intake/test_control.py and e2e/test_control.py",
    "jobs/commit.py": "run/test_runner.py and jobs/test_ordering.py, with the running job",
    "publish/verify.py": "publish/test_folder.py, on what was published",
    "report/facts.py": "plain data, in report/test_status.py",
    "request/faults.py": "request/test_body.py, each fault with its words",
    "request/json_guard.py": "request/test_line.py and hostile/test_json_cases.py",
    "run/attempts.py": "run/test_runner.py",
    "service/daemon.py": "e2e/, as a real process",
    "service/parts.py": "run/, intake/ and crash/, which are built of the same parts",
    "service/worker.py": "e2e/test_gpu.py and gpu/test_energy.py",
    "spool/entries.py": "intake/test_watch.py, with real folders",
}


def test_tests_mirror_the_rooms() -> None:
    """Each module has a test file of its name, or is listed with what tests it instead."""
    tests = Path(__file__).parents[1]
    modules = {n for n in NAMES if "/" in n and not n.endswith("__init__.py")}
    without = {n for n in modules if not (tests / n).with_name(f"test_{Path(n).name}").exists()}
    assert without == TESTED_ELSEWHERE.keys()


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after some code."""
    script = f"{code}\nimport sys\nprint(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_daemon_loads_no_torch() -> None:
    """The process that watches the engine stays small: neither torch nor vLLM nor tables."""
    loaded = modules_after("import inbox_daemon.service.start")
    assert not loaded & {"torch", "vllm", "transformers", "numpy", "rich", "typer", "pynvml"}


def test_the_command_line_answers_before_it_loads_the_daemon() -> None:
    """Help and version wait for no database and no network library."""
    loaded = modules_after("import inbox_daemon.cli.main")
    assert not loaded & {"lmdb", "aiohttp", "watchdog", "torch", "vllm"}


def test_documents_never_need_the_engine() -> None:
    """What senders and web apps read can be imported without any I/O library."""
    loaded = modules_after("import inbox_daemon.contract.job_documents, inbox_daemon.request.line")
    assert not loaded & {"lmdb", "aiohttp", "watchdog", "torch"}
