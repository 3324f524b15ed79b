"""Become a server whose life is bound to the daemon's.  Run as a program, never imported.

Purpose: the few system calls between fork and exec, outside of the daemon's process,
where they would have to run in a fork of a program with threads.
Invariants: the process is killed when the thread that started it ends, also by
SIGKILL, and however early; nothing is imported from the package.
Known limit: the signal reaches this process alone; its own children are the business
of what ends the process group (session.py).

Usage: launch.py PARENT_PID COMMAND [ARGUMENT...]
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
# Of the two, the kernel shall take the engine: the daemon starts it again.
_OOM_SCORE = "500"
_NOT_FOUND = 127
_NOT_STARTED = 126


def main(parent: int, command: list[str]) -> None:
    """Ask for the parent's death signal, then become the command.

    Exits with 127 when there is no such command and 126 when it cannot be started,
    as a shell does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # What the service may do to other users' files, its engine may not.
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    if os.getppid() != parent:
        sys.exit("the daemon ended before its engine began")
    # Python ignores this one for itself, and what is ignored stays so across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the operator's own command, without a shell
    except FileNotFoundError:
        sys.stderr.write(f"{command[0]}: command not found\n")
        sys.exit(_NOT_FOUND)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: cannot be started: {error.strerror}\n")
        sys.exit(_NOT_STARTED)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
