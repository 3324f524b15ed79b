"""Files in a spool: drops, folders to publish and notices."""

from pathlib import Path

import orjson

from builders import JOB_ID
from inbox_daemon.contract.states import Priority
from inbox_daemon.spool import Spool
from inbox_daemon.spool.entries import Signature

NORMAL = Priority.NORMAL
NOTICE = b'{"id": "x", "status": "failed"}'


def names(folder: Path) -> set[str]:
    """Return the names of what lies in a folder."""
    return {path.name for path in folder.iterdir()}


def drop(spool: Spool, name: str, content: bytes = b"{}\n", lane: Priority = NORMAL) -> Signature:
    """Put a file into inbox/ and return its signature."""
    path = spool.lane(lane) / name
    path.write_bytes(content)
    return Signature.of(path.lstat())


def build(spool: Spool, name: str = "job") -> None:
    """Make the folder that will be published."""
    folder = spool.build_path(JOB_ID)
    folder.mkdir(parents=True)
    (folder / "output.jsonl").write_bytes(b"{}\n")
    (folder / "status.json").write_bytes(orjson.dumps({"id": JOB_ID, "name": name}))
