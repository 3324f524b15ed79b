"""What the tests of a running bench share: its names, and the proof of a published job."""

from collections.abc import Callable

import jsonschema

from inbox_daemon.cli.views import read_status
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.publish.verify import verify_published
from scripted_runner import Bench

Make = Callable[..., Bench]


def ids(count: int) -> list[str]:
    """r0, r1 and so on."""
    return [f"r{number}" for number in range(count)]


def prove(bench: Bench, name: str = "job") -> None:
    """Hold a published folder to its own proof and to the schemas."""
    folder = bench.spool.outbox / name
    status = read_status(folder)
    assert status is not None
    (record,) = [record for record in bench.ledger.jobs() if record.name == name]
    assert verify_published(folder, status, record).faults == []
    schema = jsonschema.Draft202012Validator(json_schema("output"))
    for file in ("output.jsonl", "errors.jsonl"):
        for output in bench.lines(file, name):
            schema.validate(output)
