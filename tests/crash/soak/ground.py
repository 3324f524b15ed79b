"""The small filesystem below the spool, and the ballast that fills it.

Purpose: ext4 or XFS on a loop device or a tmpfs, as root; else a plain folder, on which
nothing is filled.
Invariant: mounts live in a mount namespace of this process (torture.disks), so the kernel
undoes them however it ends.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from torture.disks import FILESYSTEMS, Disk, enter_namespace, why_not

KINDS = (*FILESYSTEMS, "tmpfs", "folder")
FLOOR_BYTES = 48 << 20
FLOOR_INODES = 2_000
_TMPFS = "size=400m,nr_inodes=30000"
_CHUNK = 1 << 20
_LEVELS = {"floor": FLOOR_BYTES - (8 << 20), "orders": 8 << 20, "nothing": 0}
LEVELS = (*_LEVELS, "inodes")


def best_kind() -> str:
    """The kind nearest to a real disk that this process may make."""
    if why_not() is None:
        return "ext4"
    return "tmpfs" if os.geteuid() == 0 else "folder"


class Ground:
    """Where the spool lies; `root` is its parent."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Make it and mount it; raises OSError, CalledProcessError."""
        self.kind, self._disk = kind, None
        if kind in FILESYSTEMS:
            enter_namespace()
            self._disk = Disk(kind, folder)
            self.root = self._disk.root
        else:
            self.root = folder / "disk"
            self.root.mkdir(parents=True)
            if kind == "tmpfs":
                enter_namespace()
                words = ["mount", "-t", "tmpfs", "-o", _TMPFS, "soak", str(self.root)]
                subprocess.run(words, check=True)
        self._ballast = self.root / "ballast"

    @property
    def small(self) -> bool:
        """Whether it may be filled."""
        return self.kind != "folder"

    def fill(self, level: str) -> None:
        """Leave only as much as a level of LEVELS says."""
        self._ballast.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # full is what it is to be
            if level == "inodes":
                for number in range(200_000):
                    (self._ballast / f"{number}").touch()
            else:
                self._fill_bytes(_LEVELS[level])

    def _fill_bytes(self, leave: int) -> None:
        with (self._ballast / "bytes").open("ab", buffering=0) as file:
            size = file.tell()
            while (more := self._free() - leave) > 0:
                step = min(more, _CHUNK) if more > _CHUNK else min(more, 4096)
                os.posix_fallocate(file.fileno(), size, max(step, 1))
                size += max(step, 1)

    def _free(self) -> int:
        stat = os.statvfs(self.root)
        # Root may use what is kept for it, so for an empty disk that is filled too.
        return stat.f_bavail * stat.f_frsize or stat.f_bfree * stat.f_frsize

    def empty(self) -> None:
        """Take the ballast away."""
        shutil.rmtree(self._ballast, ignore_errors=True)

    def close(self) -> None:
        """Undo it; what was on a filesystem of its own is gone."""
        if self._disk is not None:
            self._disk.destroy()
        elif self.kind == "tmpfs":
            subprocess.run(["umount", str(self.root)], check=False)
