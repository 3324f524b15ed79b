"""Memory: what is held for each request and each thread is small."""

import subprocess
import sys
import tracemalloc

import orjson

from inbox_daemon.request.line import Request, engine_body

# Eight threads that have allocated and still live; then the size of the address space.
_THREADS = """
import threading
from inbox_daemon.service.start import share_one_arena
print({call})
barrier = threading.Barrier(9)
def allocate():
    held = [bytes(1000) for _ in range(100)]
    barrier.wait()
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmSize")))
barrier.wait()
"""
_ARENA_KIB = 64 * 1024  # what glibc reserves for one


def size_kib(call: str) -> tuple[str, int]:
    """What a call returned, and the address space of a process with eight threads after it."""
    code = _THREADS.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, size = done.stdout.split()
    return answer, int(size)


def test_threads_share_one_arena() -> None:
    """Where the C library has arenas, eight threads reserve none of their own."""
    taken, shared = size_kib("share_one_arena()")
    _, apart = size_kib("None")
    assert taken == "False" or apart - shared > 4 * _ARENA_KIB


def test_cycles_are_looked_for_seldom() -> None:
    """What was imported is left alone from then on, and garbage in cycles still goes."""
    code = (
        "import gc, weakref;"
        "from inbox_daemon.service.start import collect_seldom; collect_seldom();"
        "Node = type('Node', (), {}); one = Node(); one.itself = one; seen = weakref.ref(one);"
        "del one; kept = [[] for _ in range(gc.get_threshold()[0] + 1)];"
        "print(gc.isenabled(), gc.get_freeze_count() > 1000, seen() is None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3


def test_body_in_flight_takes_what_its_text_takes() -> None:
    """A thousand small bodies are held in some hundred bytes each."""
    chat = {"messages": [{"role": "user", "content": "x" * 100}]}
    request = Request("a", "/v1/chat/completions", chat)
    tracemalloc.start()
    bodies = [engine_body(request, "model") for _ in range(1000)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert orjson.loads(bodies[0]) == chat | {"model": "model"}
    assert held < 1000 * (len(bodies[0]) + 200)


def test_the_limit_of_open_files_is_raised() -> None:
    """A daemon born with room for few connections makes room for all that are allowed.

    What it returns is what the window is bounded by, whatever the order of the start.
    """
    program = (
        "import resource; from inbox_daemon.service.start import raise_file_limit;"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    shell = ["sh", "-c", 'ulimit -S -n 256; ulimit -H -n 4096; exec "$@"', "sh"]
    run = subprocess.run([*shell, sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == b"4096 (4096, 4096)\n"
