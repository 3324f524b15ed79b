"""Read, check and show the answers of the demo.

Pure but for reading the two files of a job's folder in outbox/ and printing to the console given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from rich.console import Console
from rich.table import Table
from rich.text import Text

TOO_LONG = "too-long-prompt"

Line = dict[str, Any]


class AnswerError(Exception):
    """The answers are not what the example must give; the message says how they differ."""


def read_lines(path: Path) -> dict[str, Line]:
    """Read a JSONL file by custom_id, in its order."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    return {line["custom_id"]: line for line in lines}


def show(requests: dict[str, Line], results: dict[str, Line], console: Console) -> None:
    """Print each question with its answer or its error, in input order."""
    table = Table(show_lines=True, expand=True)
    table.add_column("custom_id", style="cyan", ratio=2)
    table.add_column("question", ratio=4)
    table.add_column("answer", ratio=5)
    for custom_id, request in requests.items():
        result = results[custom_id]
        text, style = answer_of(result), ""
        if result["error"]:
            text, style = f"dead letter: {result['error']['message']}", "yellow"
        table.add_row(
            custom_id, Text(shorten(question_of(request), 160)), Text(shorten(text, 300), style)
        )
    console.print(table)


def question_of(request: Line) -> str:
    """Return what the request asks: its prompt or its last message."""
    body = request["body"]
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def answer_of(result: Line) -> str:
    """Return the text of an answer, as the engine gave it."""
    body = (result["response"] or {}).get("body") or {}
    choice = (body.get("choices") or [{}])[0]
    return str(choice["message"]["content"] if "message" in choice else choice.get("text", ""))


def shorten(text: str, limit: int) -> str:
    """Put a text on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def check(requests: dict[str, Line], answers: Path) -> dict[str, Line]:
    """Raise unless the folder holds what the example must give; return all result lines."""
    good = read_lines(answers / "output.jsonl")
    errors = answers / "errors.jsonl"
    bad = read_lines(errors) if errors.is_file() else {}
    if list(bad) != [TOO_LONG]:
        message = f"errors.jsonl holds {list(bad)}; it should hold {TOO_LONG} alone."
        raise AnswerError(message)
    if list(good) != [custom_id for custom_id in requests if custom_id != TOO_LONG]:
        message = "output.jsonl does not hold every other request once, in input order."
        raise AnswerError(message)
    for custom_id, request in requests.items():
        schema = request["body"].get("response_format", {}).get("json_schema", {}).get("schema")
        if schema:
            check_structure(custom_id, answer_of(good[custom_id]), schema)
    return good | bad


def check_structure(custom_id: str, answer: str, schema: dict[str, Any]) -> None:
    """Raise unless a structured answer parses and fits the schema that it was asked for."""
    try:
        jsonschema.validate(json.loads(answer), schema)
    except (json.JSONDecodeError, jsonschema.ValidationError) as problem:
        message = f"The answer to {custom_id} does not fit its schema: {problem}"
        raise AnswerError(message) from problem
