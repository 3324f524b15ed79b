"""Write jobs as senders do, and hold what came back to the contract.

Purpose: input lines, and `check_outputs`, the one check of a finished job's folder.
Invariant: nothing of the daemon's own code reads or writes here, but the schemas that it
publishes, so an error on its side cannot cancel itself out.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

CHAT = "/v1/chat/completions"
SCHEMAS = Path(__file__).parents[2] / "schemas"
Json = dict[str, Any]


def request(custom_id: str, body: Json, url: str = CHAT) -> bytes:
    """One input line with its newline."""
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def chat(custom_id: str, text: str, **more: object) -> bytes:
    """An input line that asks one thing."""
    return request(custom_id, {"messages": [{"role": "user", "content": text}], **more})


def chats(count: int, marked: dict[int, str] | None = None, **more: object) -> list[bytes]:
    """As many input lines, r0, r1 and so on; `marked` puts a stand-in's marker into some."""
    marked = marked or {}
    return [
        chat(f"r{n}", f"question {n} {marked.get(n, '')}".strip(), **more) for n in range(count)
    ]


@cache
def schema(name: str) -> jsonschema.Draft202012Validator:
    """The published schema of a document, as a web app would use it."""
    document = json.loads((SCHEMAS / f"{name}.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def parsed_lines(path: Path) -> list[Json]:
    """The lines of a JSONL file, none of them cut or empty."""
    data = path.read_bytes()
    assert data.endswith(b"\n"), f"{path.name} ends in the middle of a line"
    return [json.loads(line) for line in data[:-1].split(b"\n")]


@dataclass(frozen=True, slots=True)
class Outputs:
    """A finished job, checked: its lines by custom_id, and its status."""

    results: dict[str, Json]
    errors: dict[str, Json]
    status: Json

    def reasons(self) -> dict[str, str]:
        """Why each dead letter is one."""
        return {custom_id: line["error"]["code"] for custom_id, line in self.errors.items()}


def check_outputs(inputs: Sequence[bytes], folder: Path, status: str = "completed") -> Outputs:
    """Hold a job's folder to the contract and return what it holds.

    `status` is the word that its status.json must have.

    Every input line has exactly one line in output.jsonl or errors.jsonl, each file in
    input order; all fit their schemas; the counts are right; retry.jsonl is exactly the
    original lines of the dead letters.
    """
    originals = _by_custom_id(inputs)
    results = _checked_lines(folder / "output.jsonl")
    errors = _checked_lines(folder / "errors.jsonl")
    dead = {line["custom_id"] for line in errors}
    assert [r["custom_id"] for r in results] == [c for c in originals if c not in dead]
    assert [r["custom_id"] for r in errors] == [c for c in originals if c in dead]
    ids = [line["id"] for line in (*results, *errors)]
    assert len(set(ids)) == len(ids)
    assert all(r["error"] is None and r["response"]["status_code"] == 200 for r in results)
    assert all(line["error"] for line in errors)
    retry = folder / "retry.jsonl"
    dropped_again = retry.read_bytes() if retry.exists() else b""
    assert dropped_again == b"".join(originals[line["custom_id"]] for line in errors)
    document = _checked_status(folder, len(results), len(errors))
    assert document["status"] == status
    return Outputs(_named(results), _named(errors), document)


def _by_custom_id(inputs: Iterable[bytes]) -> dict[str, bytes]:
    lines = [line for line in inputs if line.strip()]
    return {json.loads(line)["custom_id"]: line.rstrip(b"\n") + b"\n" for line in lines}


def _named(lines: Iterable[Json]) -> dict[str, Json]:
    return {line["custom_id"]: line for line in lines}


def _checked_lines(path: Path) -> list[Json]:
    if path.name == "errors.jsonl" and not path.exists():
        return []
    if path.stat().st_size == 0:
        assert path.name == "output.jsonl", f"{path.name} is there although it is empty"
        return []
    lines = parsed_lines(path)
    for line in lines:
        schema("output").validate(line)
    return lines


def _checked_status(folder: Path, completed: int, failed: int) -> Json:
    status: Json = json.loads((folder / "status.json").read_bytes())
    schema("job-status").validate(status)
    counts = {"total": completed + failed, "completed": completed, "failed": failed}
    assert status["request_counts"] == counts
    named = {status["output_file_id"], status["error_file_id"], status["retry_file"]}
    assert {path.name for path in folder.iterdir()} == {"status.json", *named} - {None}
    return status
