"""Filesystems whose power can be cut: ext4 and XFS on loop devices.

Purpose: make one in an image file, mount it, shut it down as a power cut does, and
mount it again, which replays its log.
Invariants: mounts live in a mount namespace of this process, so the kernel undoes them,
loop devices included, however the process ends.
Known limit: what the filesystem has handed to the device stays there; a disk that lies
about its write cache is not simulated.
"""

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

FILESYSTEMS = ("ext4", "xfs")
_BYTES = 400 << 20  # mkfs.xfs refuses less than 300 MiB
_CLONE_NEWNS = 0x00020000
# FS_IOC_SHUTDOWN, with the argument that leaves the log unflushed.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)
_MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}


def why_not() -> str | None:
    """Say what is missing on this machine; None when power cuts can be made."""
    if os.geteuid() != 0:
        return "power cuts need root"
    if not Path("/dev/loop-control").exists():
        return "power cuts need loop devices"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for program in ("mkfs.ext4", "mkfs.xfs", "mount", "umount"):
        if shutil.which(program, path=path) is None:
            return f"power cuts need {program} (e2fsprogs, xfsprogs)"
    return None


def enter_namespace() -> None:
    """Make this process's mounts its own.

    Raises OSError: it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def cut_power(fd: int) -> None:
    """Shut the filesystem down on which the open folder lies: nothing more reaches the disk."""
    fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)


class Disk:
    """One filesystem in an image file; `root` is where it is mounted."""

    def __init__(self, filesystem: str, folder: Path) -> None:
        """Make the filesystem and mount it."""
        self.filesystem = filesystem
        self._image, self.root = folder / "disk.img", folder / "disk"
        self.root.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(_BYTES)
        subprocess.run([*_MKFS[filesystem], self._image], check=True)
        self._fd = -1
        self.mount()

    def mount(self) -> None:
        """Mount it, with its log replayed."""
        subprocess.run(["mount", "-o", "loop", self._image, self.root], check=True)
        self._fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def cut(self) -> None:
        """Cut the power; the mount stays until `unmount`."""
        cut_power(self._fd)

    def unmount(self) -> None:
        """Unmount it; the processes that used it must have ended."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            subprocess.run(["umount", self.root], check=True)

    def destroy(self) -> None:
        """Remove it with all that it holds."""
        self.unmount()
        self._image.unlink()
        self.root.rmdir()
