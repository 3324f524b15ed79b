"""Architecture: which module may do what, read from the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "inbox_daemon"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

# What decides and returns, and neither looks at the world nor changes it.  validation
# opens the one path that it is given, and belongs here but for that.
PURE = (
    "model",
    "states",
    "errors",
    "records",
    "limits",
    "chunking",
    "window",
    "ordering",
    "settling",
    "governor",
    "energy",
    "wire",
    "linefaults",
    "bodytables",
    "bodyrules",
    "bodyparts",
    "bodyschemas",
    "outcomes",
    "letters",
    "hunt",
    "hang",
    "heartbeat",
    "documents",
    "engine/base",
    "engine/metrics",
)
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


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_looks_at_nothing(module: str) -> None:
    """No clock, no file, no thread and no network is imported where only decisions are made."""
    roots = {name.split(".")[0] for name in imports(f"{module}.py")}
    assert not roots & IMPURE


def transitive(name: str, seen: set[str]) -> set[str]:
    """A module with all that it imports of this package, and so on."""
    if name in seen:
        return seen
    seen.add(name)
    for found in imports(name):
        path = found.removeprefix("inbox_daemon.").replace(".", "/") + ".py"
        if found.startswith("inbox_daemon.") and path in NAMES:
            transitive(path, seen)
    return seen


@pytest.mark.parametrize("module", sorted({*PURE} - {"governor"}))  # which knows a sample's type
def test_a_pure_module_builds_on_pure_ones(module: str) -> None:
    """What a pure module imports is pure as well, but for the configuration's own reading."""
    below = transitive(f"{module}.py", set()) - {"config.py"}
    assert below <= {f"{pure}.py" for pure in PURE}


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("lmdb", {"ledger/store.py", "ledger/dead.py", "ledger/jobs.py", "ledger/lines.py"}),
        ("pynvml", {"gpu.py"}),
        ("aiohttp", {"engine/client.py"}),
        ("watchdog", {"watch.py"}),
        ("sdnotify", {"daemon.py"}),
        ("rich", {"display.py"}),
        ("typer", {"cli.py", "cli_common.py", "cli_dead.py"}),
        ("ctypes", {"durable.py", "engine/launch.py", "memory.py"}),
        ("fcntl", {"durable.py"}),
        ("prometheus_client", {"engine/metrics.py"}),
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


ALLOWED = {
    # A journal is cut to what was committed, which is only ever less than was promised.
    "journal.py": {"os.ftruncate"},
    # Sockets, start notes and logs of an engine: they need not survive anything.
    "engine/child.py": None,
    "engine/server.py": None,
    "engine/processes.py": None,
    "engine/runtime.py": None,
    # The files of a folder that is being built, each by its own descriptor.
    "publish.py": {"os.fsync"},
    # The submitter's hidden file, which nobody has been told of.
    "spool/inbox.py": {"hidden.unlink"},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "durable.py"])
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
    if len((PACKAGE / name).read_text().splitlines()) > 80:
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
    below = {
        name: {
            path
            for found in imports(name)
            if (path := found.removeprefix("inbox_daemon.").replace(".", "/") + ".py") in NAMES
        }
        - {name}
        for name in NAMES
    }
    while below:
        free = {name for name, needs in below.items() if not needs & below.keys()}
        assert free, f"circle among {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after some code."""
    script = f"{code}\nimport sys\nprint(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_daemon_loads_no_torch() -> None:
    """The process that watches the engine stays small: neither torch nor vLLM nor tables."""
    loaded = modules_after("import inbox_daemon.daemon")
    assert not loaded & {"torch", "vllm", "transformers", "numpy", "rich", "typer", "pynvml"}


def test_the_command_line_answers_before_it_loads_the_daemon() -> None:
    """Help and version wait for no database and no network library."""
    loaded = modules_after("import inbox_daemon.cli")
    assert not loaded & {"lmdb", "aiohttp", "watchdog", "torch", "vllm"}


def test_documents_never_need_the_engine() -> None:
    """What senders and web apps read can be imported without any I/O library."""
    loaded = modules_after("import inbox_daemon.model, inbox_daemon.wire, inbox_daemon.documents")
    assert not loaded & {"lmdb", "aiohttp", "watchdog", "torch"}
