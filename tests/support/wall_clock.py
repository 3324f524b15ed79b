"""A wall clock for one daemon, which a test can set while it runs.

Purpose: jumps of the clock as a process sees them, without touching the machine's.
Invariants: only wall time is shifted; what the kernel writes, such as a file's time, is not.
"""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("wall_clock.c")
_SHIFT = struct.Struct("q")

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")


class WallClock:
    """The clock of the processes that are started with its `env`."""

    def __init__(self, folder: Path) -> None:
        """Build what is preloaded; the clock is right at first."""
        library, note = folder / "wall_clock.so", folder / "wall_clock"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        note.write_bytes(_SHIFT.pack(0))
        with note.open("r+b") as file:
            self._shift = mmap.mmap(file.fileno(), _SHIFT.size)
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(note)}

    def set(self, *, days: int = 0, hours: int = 0, seconds: int = 0) -> None:
        """Set it so far ahead of the right time, or back where that is negative."""
        self._shift[:] = _SHIFT.pack(days * 86400 + hours * 3600 + seconds)
