"""The folder of one engine's sockets.

Purpose: a place that nobody else can enter, with a name short enough for a socket's.
Invariants: one folder for each start, removed with all that is in it when that engine
has ended; only a folder that was made here is ever removed.
"""

import os
import shutil
import tempfile
from pathlib import Path

SOCKET_NAME = "engine.sock"
_PREFIX = "inbox-daemon-"
# The longest name that a Unix socket can have, the zero byte left out.
_MAX_SOCKET_PATH = 107
# vLLM names its inner sockets, in the same folder, by UUIDs of this length.
_LONGEST_NAME = 36


def make_folder() -> Path:
    """Make a folder that only this user can enter.

    In systemd's `$RUNTIME_DIRECTORY`, else /run, else the temporary folder: the first
    that can be written and is not too long.  Raises OSError: none can be used.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    for parent in (given, "/run", tempfile.gettempdir()):
        length = len(os.fsencode(parent)) + len(f"/{_PREFIX}12345678/") + _LONGEST_NAME
        if parent and length <= _MAX_SOCKET_PATH and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    msg = "there is no folder for the engine's socket: /run and the temporary folder are no use"
    raise OSError(msg)


def remove_folder(folder: Path) -> None:
    """Remove such a folder; anything else, or one of another user, is left alone."""
    try:
        ours = folder.lstat().st_uid == os.geteuid() and folder.name.startswith(_PREFIX)
    except OSError:
        return
    if ours:
        shutil.rmtree(folder, ignore_errors=True)
