"""The documentation cannot drift: each page against the code."""

import ast
import hashlib
import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from pydantic import BaseModel

from inbox_daemon import __version__
from inbox_daemon.cli import main
from inbox_daemon.contract import config, health_documents, json_schemas, limits, states
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.hindrances import HindranceCode
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.request import endpoints, validation
from inbox_daemon.spool import Spool

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "inbox_daemon"
INSTALL, SENDERS, OPERATING = "docs/INSTALL.md", "docs/SENDERS.md", "docs/OPERATING.md"
FORMATS, COMMANDS = "docs/FORMATS.md", "docs/COMMANDS.md"
CONFIGURATION, GLOSSARY = "docs/CONFIGURATION.md", "docs/GLOSSARY.md"
PAGES = tuple(sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")))
DOCUMENTS = ("README.md", "DESIGN.md", "CHANGELOG.md", "SECURITY.md", *PAGES)
# The pages whose marked examples are held to the schemas; the job-status is that of FORMATS' job.
EXAMPLES = (FORMATS, OPERATING, SENDERS, COMMANDS, "README.md")
# The languages of the sender's page, with the program that each is quoted from.
PROGRAMS = {"python": "examples/web_app.py", "js": "examples/web_app.mjs"}
# Documents of which an example shows every field.
SHOWN_WHOLE = ("ready", "options", "control", "output", "job-status", "reason", "status")


@cache
def text(name: str) -> str:
    """The text of a document."""
    return (CHECKOUT / name).read_text(encoding="utf-8")


def table(document: str, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with the words `first`."""
    lines = iter(text(document).splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            break
    else:
        pytest.fail(f"{document} has no table that begins with {first!r}")
    rows: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def prose(document: str) -> str:
    """A document's text without its blocks of code."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", text(document))


def code(cell: str) -> list[str]:
    """The words in a text that are set as code."""
    return re.findall(r"`([^`\n]+)`", cell)


# -- the command line ---------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command of typer's own kind by its full name, such as `inbox-daemon dead list`."""
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:  # noqa: ANN401 - some typers bring their own click
        children = getattr(command, "commands", None)
        if children is None:
            found[name] = command
        for child in (children or {}).values():
            walk(child, f"{name} {child.name}")

    walk(typer.main.get_command(main.app), "inbox-daemon")
    return found


def documented_commands() -> dict[str, str]:
    """The row for each command, by its full name."""
    rows = {}
    for cells in table(COMMANDS, "command | does"):
        words = code(cells[0])[0].split()
        name = " ".join(word for word in words if re.fullmatch(r"[a-z-]+", word))
        rows[name] = " | ".join(cells)
    return rows


def test_every_command_is_in_the_table() -> None:
    """The table of commands has a row for each command, and for nothing else."""
    assert documented_commands().keys() == commands().keys()


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_command_is_documented_with_its_options(name: str) -> None:
    """A command's row names each of its options and arguments."""
    row = documented_commands()[name]
    for parameter in commands()[name].params:
        if parameter.name in {"config", "spool"}:
            continue  # every command has them, and the text above the table says so
        if parameter.param_type_name == "argument":
            shown = parameter.metavar or str(parameter.name).upper()
            assert re.search(rf"[ \[]{shown}…?[\]` ]", row), f"{shown} is not in {row}"
        else:
            assert f"`{parameter.opts[0]}" in row, f"{parameter.opts[0]} is not in {row}"


def test_every_command_takes_the_two_common_options() -> None:
    """`--config` and `--spool` are taken by each command that reads a configuration."""
    for name, command in commands().items():
        given = {option for parameter in command.params for option in parameter.opts}
        assert {"--config", "--spool"} <= given or name == "inbox-daemon schema"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_command_is_invented(document: str) -> None:
    """Each `inbox-daemon …` in code is a command, with options that it has."""
    known = commands()
    shown = re.findall(r"(?:^|[`/ ])inbox-daemon ([a-z][^`\n#&|]*)", _code_of(document))
    assert shown or document in {"CHANGELOG.md", "SECURITY.md", SENDERS, GLOSSARY}
    for words in (line.split() for line in shown):
        name = next(
            (n for size in (2, 1) if (n := " ".join(["inbox-daemon", *words[:size]])) in known),
            None,
        )
        assert name, f"there is no command `inbox-daemon {' '.join(words)}`"
        options = {option for parameter in known[name].params for option in parameter.opts}
        used = {word for word in words if word.startswith("--")}
        assert used <= options, f"{name} has no {used - options}"


def _code_of(document: str) -> str:
    """All that is set as code in a document, in blocks and in lines."""
    shell = [block for language, block in blocks(document) if language in {"", "sh"}]
    return "\n".join([*shell, *(f"`{words}`" for words in code(prose(document)))])


def blocks(document: str) -> list[tuple[str, str]]:
    """The blocks of code of a document, each with the name of its language."""
    return re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```$", text(document))


def test_no_option_is_invented() -> None:
    """Each option in the table of commands is one of that row's command."""
    for name, row in documented_commands().items():
        given = {option for parameter in commands()[name].params for option in parameter.opts}
        shown = {word for words in code(row) for word in words.split() if word.startswith("--")}
        assert shown - {"--config"} <= given


def test_the_makefile_has_every_target_that_is_named() -> None:
    """Each `make TARGET` in the documents exists."""
    targets = set(re.findall(r"(?m)^([a-z-]+):", (CHECKOUT / "Makefile").read_text()))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", _code_of(document)))
        assert named <= targets, f"{document} names make {named - targets}"


@pytest.mark.parametrize(
    ("target", "block"),
    [("service-files", "install-service"), ("uninstall-service", "uninstall-service")],
)
def test_the_makefile_installs_as_the_page_says(target: str, block: str) -> None:
    """`make` runs the page's commands for the service, in their order and no other."""
    found = re.search(rf"<!-- {block} -->\n```sh\n(.*?)```", text(INSTALL), re.DOTALL)
    assert found
    # `make test` has told this make, by the environment, to say where it works.
    words = ["make", "--dry-run", "--no-print-directory", "--old-file=as-root", target]
    told = subprocess.run(words, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert told.stdout == found[1]


# -- the configuration ----------------------------------------------------------------------


def defaults(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every key with its default."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            found |= defaults(type(field.default), f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


def test_every_key_is_in_the_table_with_its_default() -> None:
    """The table of keys has each key with its default, and no other, in the code's order."""
    rows = table(CONFIGURATION, "key | default")
    shown = {code(row[0])[0]: tomllib.loads(f"x = {code(row[1])[0]}")["x"] for row in rows}
    known = {key: str(v) if isinstance(v, Path) else v for key, v in defaults().items()}
    assert shown == known
    assert sorted(shown) == sorted(config.known_keys())


def test_every_key_is_in_the_file_that_init_writes() -> None:
    """default.toml shows each key with its default, commented out."""
    lines = (PACKAGE / "default.toml").read_text(encoding="utf-8").splitlines()
    bare = [re.sub(r"^#(\w+ = )", r"\1", line) for line in lines]
    shown = Config.model_validate(tomllib.loads("\n".join(bare)))
    assert shown.model_copy(update={"engine": shown.engine.model_copy(update={"env": {}})}) == (
        Config.model_validate({})
    )
    for key in config.known_keys():
        last = key.rpartition(".")[2]
        assert re.search(rf"(?m)^(#{last} = |\[{re.escape(key)}\])", "\n".join(lines)), key


def test_no_key_is_invented() -> None:
    """Each `section.key` in the documents' text is a key."""
    sections = "|".join(name for name in Config.model_fields if name != "spool")
    for document in DOCUMENTS:
        for word in code(prose(document)):
            if re.fullmatch(rf"({sections})\.(?!py$|json$)[a-z_.]+", word):
                parts = {key.rpartition(".")[0] for key in defaults()}
                known = {*defaults(), *parts, *_paths_of_documents()}
                assert word in known, f"{document} names {word}"


def _paths_of_documents() -> set[str]:
    """`object.field` of all documents, which look like keys: `engine.state`, `queue.…`."""
    found = set()
    for kind in json_schemas.DOCUMENTS.values():
        for name, field in kind.model_fields.items():
            for inner in _models_in(field.annotation):
                found |= {f"{name}.{key}" for key in inner.model_fields}
    return found


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)


def test_what_is_refused_by_name_is_refused() -> None:
    """Each parameter that the page calls refused is in the tables, and what passes is not."""
    words = re.search(r"Refused by name,(.*?)and some more; (.*)", prose(FORMATS))
    assert words
    refused = set(code(words[1]))
    assert refused <= {*endpoints.REFUSED, *config.NEVER}
    never = re.search(r"by its name, but for (.*?)\.", words[2])
    assert never
    assert set(code(never[1])) == set(config.NEVER)


# -- documents --------------------------------------------------------------------------------


def examples(documents: Iterable[str] = EXAMPLES) -> list[tuple[str, Any]]:
    """Each marked example of the pages: the document's name, and the JSON."""
    pattern = r"<!-- document: (\S+) -->\n```json\n(.*?)\n```"
    found = []
    for document in documents:
        for name, block in re.findall(pattern, text(document), re.DOTALL):
            whole = [block] if block.startswith("{\n") else block.splitlines()
            found += [(name, json.loads(part)) for part in whole]
    return found


def test_every_document_has_an_example() -> None:
    """Each document with a schema is shown, and each example is of one."""
    assert {name for name, _ in examples()} == set(json_schemas.DOCUMENTS)


@pytest.mark.parametrize(("name", "example"), examples(), ids=lambda value: str(value)[:20])
def test_an_example_is_valid(name: str, example: Any) -> None:  # noqa: ANN401 - JSON is any value
    """An example fits model and schema and has no field that is in neither."""
    kind = json_schemas.DOCUMENTS[name]
    kind.model_validate(example)
    jsonschema.validate(example, json_schemas.json_schema(name))
    assert _unknown(example, kind, name) == []


@pytest.mark.parametrize("name", SHOWN_WHOLE)
def test_an_example_shows_every_field(name: str) -> None:
    """Some example of a document has each of its fields."""
    shown = {key for other, example in examples() if other == name for key in example}
    assert shown == set(json_schemas.DOCUMENTS[name].model_fields)


@pytest.mark.parametrize("field", ["gpu", "worker", "engine", "queue", "disk", "limits", "jobs"])
def test_the_health_shows_every_field_of_its_parts(field: str) -> None:
    """The example of the health has each field of each of its parts."""
    example = next(example for name, example in examples() if name == "status")[field]
    kind = next(_models_in(health_documents.ServiceStatus.model_fields[field].annotation))
    part = example[0] if isinstance(example, list) else example
    assert set(part) == set(kind.model_fields)


def _unknown(value: Any, kind: type[BaseModel], path: str) -> list[str]:  # noqa: ANN401 - likewise
    """The fields of a JSON value that its model does not have."""
    found = [f"{path}.{key}" for key in value if key not in kind.model_fields]
    for key, field in kind.model_fields.items():
        inner = next(_models_in(field.annotation), None)
        part = value.get(key)
        for item in part if isinstance(part, list) else [part]:
            if inner is not None and isinstance(item, dict):
                found += _unknown(item, inner, f"{path}.{key}")
    return found


def test_the_marker_is_that_of_the_example() -> None:
    """The marker and the job's status tell size and checksum of the job that is shown."""
    block = re.search(r"<!-- document: request -->\n```json\n(.*?)```", text(FORMATS), re.DOTALL)
    assert block
    job = block[1].encode()
    told = {"bytes": len(job), "sha256": hashlib.sha256(job).hexdigest()}
    shown = dict(examples((FORMATS, SENDERS)))
    assert shown["ready"] == told
    assert {key: shown["job-status"][key] for key in told} == told


@pytest.mark.parametrize(("document", "requests"), [(FORMATS, 2), ("README.md", 3)])
def test_the_example_job_would_be_accepted(document: str, requests: int) -> None:
    """The validator has nothing to say about the job that is shown."""
    shown = [example for name, example in examples([document]) if name == "request"]
    lines = [json.dumps(example).encode() for example in shown]
    rules = Config.model_validate({}).limits
    found = validation.validate_lines(enumerate(lines, 1), rules, validation.Served())
    assert (found.requests, found.listed) == (requests, [])


def test_the_first_answer_is_that_of_the_first_job() -> None:
    """The README's answer has a line for each request of its job, in its order."""
    asked = [example["custom_id"] for name, example in examples(["README.md"]) if name == "request"]
    answered = [e["custom_id"] for name, e in examples(["README.md"]) if name == "output"]
    assert answered == asked


def test_the_readme_is_one_page() -> None:
    """What a newcomer sees first stays short, and leads to each of the pages."""
    assert len(text("README.md").encode()) <= 9_000
    for page in PAGES:
        assert f"]({page})" in text("README.md")


def test_the_readme_sends_as_the_senders_page_does() -> None:
    """The commands of the round trip, which the tests run, stand in both."""
    found = re.search(r"<!-- round-trip -->\n(```sh\n.*?```)", text(SENDERS), re.DOTALL)
    assert found
    assert found[1] in text("README.md")


@pytest.mark.parametrize("page", sorted(set(PAGES) - {GLOSSARY}))
def test_each_page_leads_to_the_glossary(page: str) -> None:
    """A word that a reader does not know is one step away."""
    assert "](GLOSSARY.md)" in text(page)


def test_every_hindrance_is_listed() -> None:
    """The table of reasons to stand still has each code in the order of the code, and no other."""
    rows = table(OPERATING, "`worker.code` | why")
    shown = [code(row[0])[0] for row in rows]
    assert sorted(shown) == sorted(HindranceCode)
    source = (PACKAGE / "run" / "runner.py").read_text(encoding="utf-8")
    body = source[source.index("def hindrance") :]
    places = [(body.index(f"code.{c.name}"), c) for c in HindranceCode if f"code.{c.name}" in body]
    ordered = [c for _, c in sorted(places)]
    assert [c for c in shown if c in ordered] == ordered


def test_the_first_job_fits_any_model() -> None:
    """The file that the README sends to the reader's own model names no other, and is sound."""
    sent = re.search(r"inbox-daemon submit .*(examples/\w+\.jsonl)", text("README.md"))
    assert sent
    lines = text(sent[1]).encode().splitlines()
    rules = Config.model_validate({}).limits
    served = validation.Served("anything", frozenset({"anything"}))
    found = validation.validate_lines(enumerate(lines, 1), rules, served)
    assert (found.requests, found.listed) == (len(lines), [])


def test_the_health_rule_works() -> None:
    """The function that the page gives for the health says what its words say."""
    block = re.search(r"<!-- run: health -->\n```python\n(.*?)```", text(OPERATING), re.DOTALL)
    assert block
    names: dict[str, Any] = {}
    exec(block[1], names)  # noqa: S102 - the page's own example
    health = next(example for name, example in examples() if name == "status")
    written = health["written_at"]
    assert names["is_up"](health, written + 1)
    assert not names["is_up"](health, written + health["stale_after_s"] + 1)
    assert not names["is_up"](health, written - health["stale_after_s"] - 1)
    assert not names["is_up"](health | {"status": "unhealthy"}, written + 1)


def test_every_schema_is_named() -> None:
    """The page lists the names that `inbox-daemon schema` takes."""
    line = next(line for line in text(FORMATS).splitlines() if "`inbox-daemon schema NAME`" in line)
    assert set(json_schemas.DOCUMENTS) <= set(code(line))


# -- the sender's page ------------------------------------------------------------------------


@pytest.mark.parametrize("language", PROGRAMS)
def test_the_senders_page_quotes_the_programs(language: str) -> None:
    """Each piece of code on the page is one of the program that the tests run, word for word."""
    program = text(PROGRAMS[language])
    quoted = [block for name, block in blocks(SENDERS) if name == language]
    pieces = [piece for block in quoted for piece in re.split(r"\n\n+(?=\S)", block)]
    assert len(pieces) > len(quoted)
    for piece in pieces:
        assert piece.rstrip("\n") in program, f"not in {PROGRAMS[language]}:\n{piece}"


def test_the_senders_page_shows_both_languages() -> None:
    """Whatever the page shows in one language it shows in the other, right after it."""
    shown = [name for name, _ in blocks(SENDERS) if name in PROGRAMS]
    assert shown == ["python", "js"] * (len(shown) // 2)


def test_the_programs_have_the_same_parts() -> None:
    """Each function of the Python program is one of the JavaScript program, too."""
    in_python = re.findall(r"(?m)^def (\w+)", text(PROGRAMS["python"]))
    in_javascript = re.findall(r"(?m)^(?:async )?function (\w+)", text(PROGRAMS["js"]))
    renamed = {"fetch": "fetchResults"}  # Node has a fetch of its own
    expected = [renamed.get(name) or _camel(name) for name in in_python]
    assert in_javascript == expected


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


# -- security ---------------------------------------------------------------------------------


def test_every_test_that_security_names_exists() -> None:
    """Each claim of SECURITY.md that names a test names one that is there."""
    named = set(re.findall(r"`(test_\w+)`", text("SECURITY.md")))
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in CHECKOUT.glob("tests/**/test_*.py")
    )
    assert named
    assert named - set(re.findall(r"(?m)^(?:async )?def (test_\w+)", tests)) == set()


def test_every_directive_that_security_names_is_in_the_unit() -> None:
    """Each claim of SECURITY.md that names a directive names one that the unit sets."""
    named = set(re.findall(r"`([A-Z]\w+)=`", text("SECURITY.md")))
    unit = text("deploy/systemd/inbox-daemon.service")
    assert named
    assert named - set(re.findall(r"(?m)^(\w+)=", unit)) == set()


def test_every_measure_names_what_holds_it() -> None:
    """No row of SECURITY.md's tables of measures is without a test or a directive."""
    rows = [line for line in text("SECURITY.md").splitlines() if line.startswith("| ")]
    starts = [n for n, line in enumerate(rows) if line == "| measure | stops | held by |"]
    assert len(starts) == 5
    for line in rows[starts[0] :]:
        held_by = line.strip("| ").split(" | ")[-1]
        assert held_by == "held by" or re.search(r"`(test_\w+|tests/[\w/]+\.py|\w+=)`", held_by), (
            line
        )


# -- codes, states, events ------------------------------------------------------------------


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node


def strings(node: ast.AST) -> set[str]:
    """The strings that an expression may be."""
    if isinstance(node, ast.IfExp):
        return strings(node.body) | strings(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def codes_of_faults() -> set[str]:
    """Every code that a refusal can have."""
    found: set[str] = set()
    for path, call in calls():
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if path.name in {"base.py", "client.py"} and path.parent.name == "engine":
            continue  # an engine's Fault has no code
        if name == "Fault":
            values = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            found |= {code for value in values for code in strings(value)}
        elif name == "LineFaultError":
            found |= strings(call.args[0])
    return found


def test_every_code_of_a_refusal_is_listed() -> None:
    """The README lists each code that the source can give, and no other."""
    listed = {code(row[0])[0] for row in table(FORMATS, "code | the file is refused because")}
    controls = re.search(r"Control files are refused with (.*)", text(FORMATS))
    assert controls
    listed |= {word for word in code(controls[1]) if re.fullmatch(r"[a-z_]+", word)}
    assert listed == codes_of_faults()


def test_the_refusals_that_may_be_repeated_are_marked() -> None:
    """The README says of the right ones that the same bytes may be accepted later."""
    rows = table(FORMATS, "code | the file is refused because")
    assert {code(row[0])[0] for row in rows if row[2].startswith("yes")} == limits.RETRYABLE


def test_every_reason_of_a_dead_letter_is_listed() -> None:
    """The table of outcomes names each reason, and the control files' text too."""
    shown = {
        word for row in table(FORMATS, "what came back | what happens") for word in code(row[2])
    }
    assert shown == {reason.value for reason in DeadReason}
    narrowing = re.search(r"narrows a redrive or purge to one reason \((.*?)\)", text(COMMANDS))
    assert narrowing
    assert set(code(narrowing[1])) == shown


def test_every_folder_is_described() -> None:
    """Each folder of the spool has its section, and no other has."""
    headings = re.findall(r"(?m)^### (`.*/`)$", text(OPERATING))
    described = {folder.strip("/") for heading in headings for folder in code(heading)}
    made = Spool(Path("/spool"))
    folders = {
        str(value.relative_to("/spool"))
        for value in vars(made).values()
        if isinstance(value, Path) and value != Path("/spool")
    }
    assert {name.partition("/")[0] for name in described} == folders
    lanes = {f"inbox/{lane}" for lane in states.Priority if lane is not states.Priority.NORMAL}
    assert lanes <= described


def test_every_order_is_listed() -> None:
    """The table of control files has each order, for one job and for all."""
    control = pytest.importorskip("inbox_daemon.intake.control")
    shown = {word for row in table(COMMANDS, "file | order") for word in code(row[0])}
    every = {f"{name}.{order}" for order in control.Order for name in ("NAME", "ALL")}
    assert shown == every - {"ALL.rebind"}  # one job at a time


def events() -> dict[str, set[str]]:
    """Every event of the log that is not for debugging, with its levels."""
    found: dict[str, set[str]] = {}
    for _, call in calls():
        func = call.func
        if not (isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name)):
            continue
        if func.value.id.endswith("log") and func.attr != "debug":
            level = "error" if func.attr == "exception" else func.attr
            for event in strings(call.args[0]):
                found.setdefault(event, set()).add(level)
    return found


def test_every_event_is_listed_with_its_level() -> None:
    """The table of events has each event that the daemon logs, and no other."""
    rows = table(OPERATING, "event | level")
    shown = {event: {row[1]} for row in rows for event in code(row[0])}
    assert shown == events()


def test_every_word_for_a_state_is_explained() -> None:
    """The README names each value that a state in the health can take."""
    for kind, field in (
        (health_documents.ServiceStatus, "status"),
        (health_documents.WorkerStatus, "state"),
        (health_documents.EngineStatus, "state"),
    ):
        values = getattr(kind.model_fields[field].annotation, "__args__", ())
        assert values
        assert set(values) <= set(code(prose(OPERATING))) | set(code(prose(FORMATS)))


# -- modules and versions -----------------------------------------------------------------------


def test_the_map_of_rooms_is_the_real_one() -> None:
    """DESIGN.md names each room of the package with a line, and no other."""
    block = re.search(r"```\n(inbox_daemon/\n.*?)```", text("DESIGN.md"), re.DOTALL)
    assert block
    shown = {}
    for indent, name, words in re.findall(r"(?m)^( +)(\S+)/ *(.*)$", block[1]):
        shown["engine/process" if len(indent) > 2 else name] = words
    real = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} - {"."}
    assert shown.keys() == real
    assert all(shown.values())


def test_every_module_that_is_named_exists() -> None:
    """Each `name.py` in DESIGN.md's text is a module, past ones in the last section aside."""
    before = text("DESIGN.md").partition("## What differs")[0]
    real = {path.name for path in PACKAGE.rglob("*.py")}
    for word in code(before):
        if word.endswith(".py"):
            assert word.rpartition("/")[2] in real, word


def test_every_file_that_is_named_exists() -> None:
    """Each path below one of the checkout's folders that the documents name exists."""
    folders = "deploy|docs|examples|requirements|schemas|tests"
    for document in DOCUMENTS:
        paths = re.findall(rf"(?<![\w/-])(?:{folders})/[\w./-]*", text(document))
        for path in paths:
            assert (CHECKOUT / path.rstrip(".")).exists(), f"{document} names {path}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    """Links to headings and to files of the repository are sound."""
    for target in re.findall(r"\]\(([^)]+)\)", text(document)):
        file, _, heading = target.partition("#")
        if file.startswith("https://"):
            continue
        path = (CHECKOUT / document).parent / file if file else CHECKOUT / document
        assert path.exists(), target
        name = str(path.resolve().relative_to(CHECKOUT))
        assert not heading or heading in _anchors(name), target


def _anchors(document: str) -> set[str]:
    """The anchors of a document's headings, as code forges make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", text(document))
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_changelog_knows_this_version() -> None:
    """The package's version has its section."""
    if re.fullmatch(r"[\d.]+", __version__):
        assert f"## [{__version__}]" in text("CHANGELOG.md")


def test_the_documents_keep_to_themselves() -> None:
    """No path of a developer's machine and no editor's mark is in them."""
    for document in DOCUMENTS:
        assert not re.search(r"/root/(?!\.)|/work/|TODO|XXX", text(document)), document
