"""Schemas: what is published in schemas/ is what the daemon means."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from builders import request, service_status
from inbox_daemon.cli.setup import schema_text, write_schemas
from inbox_daemon.contract.documents import URLS, RequestLine
from inbox_daemon.contract.errors import SenderError
from inbox_daemon.contract.job_documents import pretty
from inbox_daemon.contract.json_schemas import DOCUMENTS, json_schema
from inbox_daemon.contract.names import NAME_PATTERN, is_job_name

FOLDER = Path(__file__).parents[2] / "schemas"


def validator(name: str) -> jsonschema.Draft202012Validator:
    """The published schema of one document."""
    return jsonschema.Draft202012Validator(orjson.loads(schema_text(name)))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_published_schema_is_the_generated_one(name: str) -> None:
    """A change of a document without its schema fails here; `make schemas` writes them."""
    assert (FOLDER / f"{name}.schema.json").read_bytes() == schema_text(name)


def test_nothing_else_lies_in_the_folder() -> None:
    """A schema whose document is gone is removed."""
    assert {path.name for path in FOLDER.iterdir()} == {f"{n}.schema.json" for n in DOCUMENTS}


def test_all_schemas_are_written_at_once(tmp_path: Path) -> None:
    """One command writes the whole folder again."""
    write_schemas(tmp_path / "new" / "schemas")
    for path in (tmp_path / "new" / "schemas").iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_schema_is_a_schema(name: str) -> None:
    """The files are valid by draft 2020-12, which they name."""
    jsonschema.Draft202012Validator.check_schema(json_schema(name))
    assert json_schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", [None, "nothing"])
def test_an_unknown_schema_is_answered_with_those_there_are(name: str | None) -> None:
    """The error for an unknown document lists the known ones."""
    with pytest.raises(SenderError, match="job-status"):
        schema_text(name)


# -- they accept and refuse what the daemon does ------------------------------------


@pytest.mark.parametrize(
    ("name", "document", "good"),
    [
        ("request", orjson.loads(request()), True),
        ("request", orjson.loads(request()) | {"more": 1}, False),
        ("ready", {"bytes": 1, "sha256": "0" * 64}, True),
        ("ready", {"bytes": -1, "sha256": "0" * 64}, False),
        ("ready", {"bytes": 1, "sha256": "0" * 63}, False),
        ("ready", {"bytes": 1, "sha256": "0" * 64, "more": 1}, False),
        ("options", {}, True),
        ("options", {"expires_in_s": 60, "max_attempts": 2, "metadata": {"k": "v"}}, True),
        ("options", {"expires_in_s": 0}, False),
        ("options", {"expires_in_s": 1e300}, False),
        ("options", {"max_attempts": 101}, False),
        ("options", {"metadata": {"k": 1}}, False),
        ("options", {"metadata": {"k" * 65: "v"}}, False),
        ("options", {"metadata": {str(n): "v" for n in range(17)}}, False),
        ("options", {"priority": "high"}, False),
        ("control", {}, True),
        ("control", {"reason": "poison"}, True),
        ("control", {"job": "x"}, False),
    ],
)
def test_a_senders_document_is_judged_alike(
    name: str,
    document: dict[str, Any],
    good: bool,  # noqa: FBT001 - a table
) -> None:
    """What a schema says of a document that senders write is what the daemon says."""
    assert validator(name).is_valid(document) == good
    try:
        DOCUMENTS[name].model_validate(document)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == good


def test_a_health_document_is_valid_and_read_back() -> None:
    """The service's status validates against its schema and survives a round trip."""
    status = service_status()
    found = orjson.loads(pretty(status))
    validator("status").validate(found)
    assert type(status).model_validate(found) == status


@pytest.mark.parametrize("name", ["output", "job-status", "reason", "status"])
def test_readers_accept_fields_of_later_releases(name: str) -> None:
    """What a web app reads may grow: no schema of ours forbids further fields."""
    assert json_schema(name).get("additionalProperties", True) is True


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a.jsonl", True),
        ("A-1_b.c.jsonl", True),
        ("a" * 120 + ".jsonl", True),
        ("a" * 121 + ".jsonl", False),
        (".jsonl", False),
        (".a.jsonl", False),
        ("-a.jsonl", False),
        ("a.json", False),
        ("a.jsonl.tmp", False),
        ("a b.jsonl", False),
        ("ä.jsonl", False),
        ("../a.jsonl", False),
        ("a.jsonl\n", False),
        ("status.json.jsonl", False),
        ("ALL.jsonl", False),
    ],
)
def test_a_jobs_name_is_the_documented_pattern(name: str, good: bool) -> None:  # noqa: FBT001 - a table
    """The pattern, less the two names that the service keeps for itself, decides."""
    assert is_job_name(name) == good
    reserved = name in {"status.json.jsonl", "ALL.jsonl"}
    assert bool(re.fullmatch(NAME_PATTERN, name)) == (good or reserved)


def test_the_urls_of_the_model_are_those_of_the_wire() -> None:
    """The schema's list of URLs and the one that lines are checked against are the same."""
    schema = RequestLine.model_json_schema()
    assert tuple(schema["properties"]["url"]["enum"]) == URLS
