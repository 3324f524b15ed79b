"""Watching: the scan sees every file, and hints come back after each way of failing."""

import errno
import itertools
import logging
import os
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from watchdog.observers.inotify_c import InotifyFD

from inbox_daemon.intake import watch
from inbox_daemon.intake.watch import Watcher, threads_of
from inbox_daemon.spool.entries import Identity, Kind, entries, scan

# How long a hint may take before a test gives up; a hint that comes ends the wait at once.
PATIENCE_S = 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Hints:
    """Counts hints and waits for the next one."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        """Take one hint."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def come_after(self, action: Callable[[], object]) -> bool:
        """Do something; return whether a hint followed."""
        with self._changed:
            before = self.count
            action()
            return self._changed.wait_for(lambda: self.count > before, PATIENCE_S)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Return an empty folder to drop into."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def hints() -> Hints:
    """Return a counter of hints."""
    return Hints()


@pytest.fixture
def watcher(inbox: Path, hints: Hints) -> Iterator[Watcher]:
    """Return a watcher of the inbox that is closed again."""
    with Watcher([inbox], hints) as watching:
        yield watching


_serial = itertools.count()


def drop(folder: Path) -> str:
    """Deliver a file as a sender would, by renaming it into the folder; return its name."""
    name = f"drop-{next(_serial)}.jsonl"
    partial_file = folder.parent / f".{name}"
    partial_file.write_text("{}\n")
    shutil.move(partial_file, folder / name)
    return name


def names(folder: Path) -> set[str]:
    """Return what the scan finds."""
    return {entry.name for entry in scan(folder).entries}


def check(watcher: Watcher, folder: Path) -> bool:
    """Scan and check, in the order in which the daemon does it."""
    return watcher.check({folder: scan(folder).identity})


def assert_recovers(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """Check that the scan finds a file, the check renews the watch, and hints come again."""
    assert drop(inbox) in names(inbox)
    wait_until(lambda: check(watcher, inbox))
    assert watcher.watching
    assert hints.come_after(lambda: drop(inbox))
    assert not check(watcher, inbox)


def wait_until(done: Callable[[], bool]) -> None:
    """Poll for what no thread signals."""
    pause = threading.Event()
    for _ in range(PATIENCE_S * 100):
        if done():
            return
        pause.wait(0.01)
    pytest.fail("it never came true")


# The scan


def test_scan_tells_kinds_apart_without_following_links(inbox: Path) -> None:
    """Files, folders, links and other kinds are distinguished, and a link is not followed."""
    (inbox / "file").write_text("12345")
    (inbox / "folder").mkdir()
    (inbox / "link").symlink_to("file")
    os.mkfifo(inbox / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inbox / "socket"))
        kinds = {entry.name: entry.kind for entry in scan(inbox).entries}
    assert kinds == {
        "file": Kind.FILE,
        "folder": Kind.DIRECTORY,
        "link": Kind.SYMLINK,
        "fifo": Kind.OTHER,
        "socket": Kind.OTHER,
    }


def test_scan_reports_what_lstat_reports(inbox: Path) -> None:
    """Signature, owner, links and mtime are the file's own."""
    path = inbox / "a.jsonl"
    path.write_text("12345")
    os.link(path, inbox / "b.jsonl")
    os.utime(path, ns=(0, 0))
    (entry,) = [entry for entry in scan(inbox).entries if entry.name == "a.jsonl"]
    status = path.lstat()
    assert entry.signature == (
        status.st_dev,
        status.st_ino,
        5,
        0,
        status.st_ctime_ns,
    )
    assert (entry.uid, entry.nlink, entry.mtime_ns) == (os.geteuid(), 2, 0)


def test_scan_keeps_names_that_are_no_text(inbox: Path) -> None:
    """A name of any bytes comes back so that it can be opened again."""
    raw = b"\xff\n\x1b[31m-..\xc3"
    (inbox / os.fsdecode(raw)).write_text("")
    (entry,) = scan(inbox).entries
    assert os.fsencode(entry.name) == raw


def test_scan_by_descriptor_can_be_repeated(inbox: Path) -> None:
    """An open directory is read from its beginning each time, and stays open."""
    descriptor = os.open(inbox, os.O_RDONLY | os.O_DIRECTORY)
    try:
        first = drop(inbox)
        assert {entry.name for entry in scan(descriptor).entries} == {first}
        second = drop(inbox)
        assert {entry.name for entry in entries(descriptor)} == {first, second}
        assert scan(descriptor).identity == scan(inbox).identity
    finally:
        os.close(descriptor)


def test_scan_leaves_no_descriptor_open(inbox: Path) -> None:
    """A scan closes what it opened, also when it fails."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - links that vanish
    scan(inbox)
    (inbox / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        scan(inbox / "file")
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - likewise


def test_scan_of_a_missing_folder_says_so(tmp_path: Path) -> None:
    """A folder that is gone is an error that the caller must see."""
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "nowhere")


def test_scan_survives_files_that_vanish_meanwhile(
    inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file taken away between reading the folder and asking for it is left out."""

    class Gone:
        name = "gone"

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise FileNotFoundError

    class Listing:
        def __enter__(self) -> Iterator[Gone]:
            return iter([Gone()])

        def __exit__(self, *_: object) -> None: ...

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", lambda _: Listing())
        assert scan(inbox).entries == []


def test_files_there_before_the_start_are_found(inbox: Path, hints: Hints) -> None:
    """No event tells of a file that was there first; the scan does."""
    name = drop(inbox)
    with Watcher([inbox], hints):
        assert names(inbox) == {name}


# Hints


def test_each_way_of_dropping_gives_a_hint(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """Renaming in, renaming within, linking and closing after writing all wake the scan."""
    assert watcher.watching
    assert watcher.reason is None
    assert hints.come_after(lambda: drop(inbox))
    name = drop(inbox)
    assert hints.come_after(lambda: (inbox / name).rename(inbox / "renamed.jsonl"))
    assert hints.come_after(lambda: os.link(inbox / "renamed.jsonl", inbox / "linked.jsonl"))
    with (inbox / "linked.jsonl").open("a") as slow:
        slow.write("{}\n")
        assert hints.come_after(slow.close)


def test_reading_gives_no_hint(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """What the intake does itself, opening and reading, must not wake the next scan."""
    assert hints.come_after(lambda: drop(inbox))
    (name,) = names(inbox)
    marker = inbox / "marker"
    assert hints.come_after(lambda: os.mkfifo(marker))
    settled = hints.count
    for _ in range(10):
        assert (inbox / name).read_text() == "{}\n"
    # Events keep their order: all that came of reading is there before this one.
    assert hints.come_after(lambda: marker.rename(inbox / "renamed"))
    assert hints.count == settled + 1


def test_quiet_check_changes_nothing(watcher: Watcher, inbox: Path) -> None:
    """While all is well a check builds nothing, with identities given or looked up."""
    assert not check(watcher, inbox)
    assert not watcher.check()


def test_linked_folder_is_watched_where_it_leads(tmp_path: Path, inbox: Path, hints: Hints) -> None:
    """A spool reached through a symbolic link gives hints, also after the link was moved."""
    link = tmp_path / "link"
    link.symlink_to(inbox)
    other = tmp_path / "other"
    other.mkdir()
    with Watcher([link], hints) as watcher:
        assert hints.come_after(lambda: drop(inbox))
        link.unlink()
        link.symlink_to(other)
        assert check(watcher, link)
        assert hints.come_after(lambda: drop(other))


def test_hints_come_from_every_folder(tmp_path: Path, hints: Hints) -> None:
    """Several folders share one watcher, and each gives hints."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with Watcher(folders, hints):
        for folder in folders:
            assert hints.come_after(partial(drop, folder))


# The ways in which hints fail


def test_hints_survive_a_handler_that_raises(inbox: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the callback is logged once and ends nothing."""
    called = Hints()

    def fail() -> None:
        called()
        raise RuntimeError("the loop is closed")

    with Watcher([inbox], fail) as watcher:
        for _ in range(3):
            assert called.come_after(lambda: drop(inbox))
        assert not check(watcher, inbox)
        assert len(names(inbox)) == 3
    assert [record.message for record in caplog.records].count("hint_failed") == 1


def test_folder_deleted_and_made_again(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """A new folder under the old name is watched from the next check on."""
    inbox.rmdir()
    inbox.mkdir()
    assert_recovers(watcher, hints, inbox)


def test_folder_gone_for_a_while(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """While the folder is missing the watcher says so; once it is back, hints are too."""
    inbox.rmdir()
    assert watcher.check({inbox: None})
    assert not watcher.watching
    assert watcher.reason is not None
    assert str(inbox) in watcher.reason
    inbox.mkdir()
    assert_recovers(watcher, hints, inbox)
    assert watcher.reason is None


def test_folder_renamed_and_replaced(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """The folder that has the name now is watched, not the one that had it."""
    inbox.rename(inbox.with_name("old"))
    inbox.mkdir()
    assert_recovers(watcher, hints, inbox)


def test_folder_replaced_during_the_build(
    tmp_path: Path, inbox: Path, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder replaced just before the watch was set is noticed by the next check."""
    look = watch._look

    def look_and_replace(folder: Path) -> Identity | None:
        identity = look(folder)
        monkeypatch.setattr(watch, "_look", look)
        inbox.rename(tmp_path / "old")
        inbox.mkdir()
        return identity

    monkeypatch.setattr(watch, "_look", look_and_replace)
    with Watcher([inbox], hints) as watcher:
        assert_recovers(watcher, hints, inbox)


@pytest.mark.root
@needs_root
def test_folder_mounted_over(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """What is mounted over the folder is watched, and the folder again once it is bare."""
    subprocess.run(["mount", "-t", "tmpfs", "inbox-daemon-test", inbox], check=True)
    try:
        assert_recovers(watcher, hints, inbox)
    finally:
        # The unmount succeeds only if the watcher holds nothing open there.
        subprocess.run(["umount", inbox], check=True)
    assert_recovers(watcher, hints, inbox)


def test_reader_thread_dead(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """The thread that reads from the kernel is found dead though all others live."""
    observer = watcher._observer
    assert observer is not None
    (reader,) = [thread for thread in threads_of(observer) if isinstance(thread, InotifyFD)]
    reader.stop()
    reader.join()
    assert observer.is_alive()
    assert all(emitter.is_alive() for emitter in observer.emitters)
    assert_recovers(watcher, hints, inbox)


def test_dispatcher_thread_dead(
    watcher: Watcher, hints: Hints, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dispatcher that ended with an exception is replaced."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    observer = watcher._observer
    assert observer is not None
    observer.event_queue.put("no pair")
    observer.join(PATIENCE_S)
    assert not observer.is_alive()
    assert_recovers(watcher, hints, inbox)


def test_emitter_thread_dead(watcher: Watcher, hints: Hints, inbox: Path) -> None:
    """An emitter that ended is replaced."""
    observer = watcher._observer
    assert observer is not None
    (emitter,) = observer.emitters
    emitter.stop()
    emitter.join(PATIENCE_S)
    assert not emitter.is_alive()
    assert_recovers(watcher, hints, inbox)


def test_every_thread_of_watchdog_is_looked_at(watcher: Watcher) -> None:
    """No thread that the installed watchdog started for us escapes the check."""
    before = set(threading.enumerate())
    watcher._build()
    started = set(threading.enumerate()) - before
    observer = watcher._observer
    assert observer is not None
    assert len(started) == 3
    assert set(threads_of(observer)) == started


def test_queue_overflow(
    watcher: Watcher, hints: Hints, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More files than the kernel's queue holds are all found, and hints go on."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip("the queue here is too long to fill quickly")
    observer = watcher._observer
    assert observer is not None
    (reader,) = [thread for thread in threads_of(observer) if isinstance(thread, InotifyFD)]
    # The reader takes some thousand out of the queue before it comes to the lock.
    more = 10_000
    overflowed = "Inotify queue overflowed; filesystem events were lost"
    with caplog.at_level(logging.WARNING, "watchdog"):
        with reader._lock:
            for number in range(limit + more):
                os.mknod(inbox / str(number))
        wait_until(lambda: any(record.message == overflowed for record in caplog.records))
    assert len(names(inbox)) == limit + more
    check(watcher, inbox)
    assert hints.come_after(lambda: drop(inbox))


def test_filesystem_without_events(inbox: Path, hints: Hints) -> None:
    """Where the kernel tells of nothing, the scan finds what is new, and hints go on elsewhere."""
    silent = Path(f"/proc/{os.getpid()}/fd")
    with Watcher([silent, inbox], hints) as watcher, (inbox / "file").open("w") as opened:
        name = str(opened.fileno())
        # The file itself gave hints; what follows is counted from a later event on.
        assert hints.come_after(lambda: drop(inbox))
        assert name in names(silent)
        check(watcher, silent)
        assert hints.come_after(lambda: drop(inbox))


# What must not fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "inotify instance limit reached"),
        OSError(errno.ENOSPC, "inotify watch limit reached"),
        RuntimeError("can't start new thread"),
    ],
)
@pytest.mark.parametrize("refused", ["watchdog.observers.inotify.InotifyFD", "add_callback"])
def test_limits_of_the_kernel_are_survived(
    inbox: Path, hints: Hints, error: Exception, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no watch can be set up, the scan still works, and the next check tries again."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as limited:
        if refused == "add_callback":
            limited.setattr(InotifyFD, "add_callback", refuse)
        else:
            limited.setattr(refused, refuse)
        watcher = Watcher([inbox], hints)
        assert not watcher.watching
        assert str(error) in str(watcher.reason)
        assert drop(inbox) in names(inbox)
        check(watcher, inbox)
        assert not watcher.watching
    with watcher:
        assert_recovers(watcher, hints, inbox)


def test_limit_of_descriptors_is_survived(inbox: Path, hints: Hints) -> None:
    """With no descriptor left the watcher says so, and comes back once there are some."""
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        watcher = Watcher([inbox], hints)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with watcher:
        assert not watcher.watching
        assert_recovers(watcher, hints, inbox)


def test_missing_folder_is_named_and_the_rest_watched(inbox: Path, hints: Hints) -> None:
    """A folder that is missing is named in the reason; hints of the others come."""
    with Watcher([inbox, inbox / "missing"], hints) as watcher:
        assert not watcher.watching
        assert "missing" in str(watcher.reason)
        assert hints.come_after(lambda: drop(inbox))


def test_lasting_trouble_is_logged_once(
    watcher: Watcher, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that stays away is one line in the log, however many scans miss it."""
    caplog.set_level(logging.INFO, watch.__name__)
    inbox.rmdir()
    for _ in range(5):
        watcher.check({inbox: None})
    assert [record.message for record in caplog.records] == ["watch_lost"]
    inbox.mkdir()
    check(watcher, inbox)
    check(watcher, inbox)
    assert [record.message for record in caplog.records] == ["watch_lost", "watch_renewed"]


def test_rebuilding_leaks_nothing(watcher: Watcher, inbox: Path) -> None:
    """After many rebuilds there are as many threads and descriptors as before."""

    def usage() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = usage()
    for _ in range(20):
        inbox.rmdir()
        watcher.check({inbox: None})
        inbox.mkdir()
        assert check(watcher, inbox)
    wait_until(lambda: usage() == before)


def test_closed_watcher_gives_no_hint_and_may_be_closed_again(inbox: Path, hints: Hints) -> None:
    """After closing, its threads are gone; closing twice is no error."""
    before = set(threading.enumerate())
    watcher = Watcher([inbox], hints)
    watcher.close()
    watcher.close()
    assert not watcher.watching
    wait_until(lambda: set(threading.enumerate()) <= before)
    drop(inbox)
    assert hints.count == 0
