"""outbox/: results and notices, whole or not at all."""

import errno
import os

import orjson
import pytest

from builders import JOB_ID
from inbox_daemon.spool import Spool, durable
from spool_files import NOTICE, build, names

# -- notices ------------------------------------------------------------------------


def test_a_notice_appears_whole_and_is_replaced_by_a_newer(spool: Spool) -> None:
    """outbox/NAME/status.json tells a refusal where no results lie."""
    assert spool.put_notice("job", NOTICE)
    assert spool.put_notice("job", b'{"id": "y"}')
    assert spool.read_status("job") == {"id": "y"}
    assert not spool.holds_results("job")
    assert names(spool.claimed) == set()


@pytest.mark.parametrize("occupant", ["results", "foreign", "file", "dangling"])
def test_a_notice_never_disturbs_anything_else(spool: Spool, occupant: str) -> None:
    """No notice is put where results, foreign files or something other than a folder are."""
    place = spool.outbox / "job"
    if occupant == "file":
        place.write_bytes(b"mine")
    elif occupant == "dangling":
        place.symlink_to("nowhere")
    else:
        place.mkdir()
        (place / ("output.jsonl" if occupant == "results" else "notes.txt")).write_bytes(b"mine")
    assert not spool.put_notice("job", NOTICE)
    assert not (place / "status.json").exists()


def test_clearing_a_notice_clears_nothing_else(spool: Spool) -> None:
    """Results stay, a notice goes, and nothing is no error."""
    build(spool)
    spool.publish(JOB_ID, "job")
    spool.put_notice("refused", NOTICE)
    for name in "job", "refused", "nothing":
        spool.clear_notice(name)
    assert names(spool.outbox) == {"job"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_status_that_cannot_be_read_is_none(spool: Spool, content: bytes) -> None:
    """Whatever lies there is not mistaken for a job's status."""
    (spool.outbox / "job").mkdir()
    (spool.outbox / "job" / "status.json").write_bytes(content)
    assert spool.read_status("job") is None
    assert spool.published_as(JOB_ID, "job") is None


def test_the_services_health_is_replaced_whole(spool: Spool) -> None:
    """Readers of outbox/ never see a temporary name."""
    for content in (b"one", b"two"):
        spool.write_service_status(content)
        assert (spool.outbox / "status.json").read_bytes() == content
        assert names(spool.outbox) == {"status.json"}


def test_what_is_published_belongs_to_the_outboxs_group(spool: Spool) -> None:
    """A web app in the group of outbox/ can read what appears there, and no other user can."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to any group")
    os.chown(spool.outbox, -1, 4242)
    spool.put_notice("job", NOTICE)
    spool.put_notice("job", NOTICE)
    spool.write_service_status(b"{}")
    for path in (spool.outbox / "job", *spool.outbox.glob("**/*.json")):
        assert path.stat().st_gid == 4242
        assert path.stat().st_mode & 0o007 == 0
        assert path.stat().st_mode & 0o040


# -- retention of the outbox --------------------------------------------------------


def test_published_folders_are_listed_and_removed_whole(spool: Spool) -> None:
    """Only folders with a status are the daemon's to remove, and then out of sight at once."""
    build(spool)
    spool.publish(JOB_ID, "job")
    (spool.outbox / "foreign").mkdir()
    spool.write_service_status(b"{}")
    listed = list(spool.published_folders())
    assert [(name, size > 3) for name, _, size in listed] == [("job", True)]
    spool.remove_published("job")
    assert names(spool.outbox) == {"foreign", "status.json"}
    assert names(spool.claimed) == set()


def test_the_health_is_written_over_its_old_self_on_a_full_disk(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no further file has room the document is still whole JSON, and later replaced again."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = spool.outbox / "status.json"
    spool.write_service_status(b'{"seq": 1, "reasons": ["a long sentence"]}\n')
    size = path.stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_file", full)
        spool.write_service_status(b'{"seq": 2}\n')
        path.rename(path.with_name("kept"))
        with pytest.raises(OSError, match="No space"):
            spool.write_service_status(b"{}")
        path.with_name("kept").rename(path)
    assert (orjson.loads(path.read_bytes()), path.stat().st_size) == ({"seq": 2}, size)
    spool.write_service_status(b"{}")
    assert path.read_bytes() == b"{}"
