"""Setting up: the spool's folders, the commented configuration, the schema files.

Purpose: what `init` and `schema` do.
Invariant: a file that exists is never overwritten by `init`.
"""

import os
from importlib import resources
from pathlib import Path

import orjson

from inbox_daemon.contract import config as configuration
from inbox_daemon.contract.errors import ConfigError, LedgerError, SenderError
from inbox_daemon.contract.json_schemas import DOCUMENTS, json_schema
from inbox_daemon.ledger import MARKER, compaction
from inbox_daemon.spool import Spool, durable


def init(config: Path | None, spool: Path | None) -> list[str]:
    """Make what is missing; return what was done, a line each.

    The configuration goes to `config`, else to where the environment says, else into
    the spool's folder.
    Raises SpoolError, ConfigError: a folder or file cannot be made.
    """
    config = config or configuration.named_by_environment()
    missing = config is not None and not config.exists()
    settings = configuration.load(config, spool=spool, missing=missing)
    place = Spool(settings.spool)
    place.create()
    place.check()
    target = config or place.root / configuration.SPOOL_FILE
    done = [f"the spool is ready: {place.root}"]
    if target.exists():
        return [*done, f"the configuration was left as it is: {target}"]
    content = default_config(spool=settings.spool if spool else None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(target, content)
    except OSError as error:
        msg = f"{target} cannot be written: {error.strerror}; name another one with --config"
        raise ConfigError("config_unwritable", msg) from None
    source = "set [engine] model in it, or [endpoint] url for a server that runs already"
    return [
        *done,
        f"the configuration is there to be edited: {target}",
        f"next: {source}, then `inbox-daemon run --config {target}`",
    ]


def default_config(spool: Path | None = None) -> bytes:
    """The commented configuration, with `spool` set if it is given."""
    text = resources.files("inbox_daemon").joinpath("default.toml").read_text("utf-8")
    if spool is not None:
        text = text.replace('#spool = "/srv/inbox-daemon"', f"spool = {toml_string(str(spool))}")
    return text.encode()


def toml_string(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's, which escapes DEL too."""
    return orjson.dumps(text).decode().replace("\x7f", "\\u007f")


def schema_text(name: str | None) -> bytes:
    """The JSON Schema of a document.

    Raises SenderError: there is no such document; names those there are.
    """
    if name not in DOCUMENTS:
        unknown = f"there is no document {name!a}; " if name else ""
        msg = f"{unknown}name one of: {', '.join(DOCUMENTS)}"
        raise SenderError("unknown_schema", msg)
    option = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
    return orjson.dumps(json_schema(name), option=option)


def write_schemas(folder: Path) -> None:
    """Write every document's schema as FOLDER/NAME.schema.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in DOCUMENTS:
        (folder / f"{name}.schema.json").write_bytes(schema_text(name))


def compact(spool: Spool) -> str:
    """Rewrite the ledger without its free pages; return what that gained.

    Raises SpoolError: a daemon runs; LedgerError: there is no ledger, a process reads it,
    or it cannot be read or copied.
    """
    spool.check()
    if not (spool.ledger / MARKER).exists():
        msg = f"there is no ledger in {spool.ledger} yet; `inbox-daemon run` makes it"
        raise LedgerError("ledger_missing", msg)
    spool.lock({"pid": os.getpid(), "since": "now, compacting"})
    try:
        before, after = compaction.compact(spool.ledger, spool.claimed / "compact")
    finally:
        spool.unlock()
    return f"the ledger had {before >> 10} KiB and has {after >> 10} KiB"
