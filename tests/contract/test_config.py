"""Configuration: every key, its default and bounds, and words that lead to the mistake."""

import json
import os
import tomllib
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from inbox_daemon.cli.setup import default_config
from inbox_daemon.contract import config
from inbox_daemon.contract.config import Config, EngineConfig, known_keys
from inbox_daemon.contract.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the settings of the machine that runs the tests out of them."""
    for name in [n for n in os.environ if n.upper().startswith(config.ENV_PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none" / "config.toml")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def refusal(path: Path | None = None) -> str:
    """The words of the error that loading ends with."""
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    return caught.value.message


def same(one: Config, other: Config) -> bool:
    """Return whether two configurations hold the same values."""
    return one.model_dump() == other.model_dump()


# -- the commented file -------------------------------------------------------------


def default_lines() -> dict[str, str]:
    """Each key of default.toml by its full name, with the text of its value."""
    found: dict[str, str] = {}
    section = ""
    for line in default_config().decode().splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif line.startswith("#") and not line.startswith("# ") and " = " in line:
            key, value = line[1:].split(" = ", 1)
            assert section + key not in found
            found[section + key] = value
    return found


def defaults() -> dict[str, Any]:
    """Every key's default by its full name."""
    values = Config().model_dump(mode="json")
    return {key: reduce(getitem, key.split("."), values) for key in known_keys()}


def test_the_commented_file_shows_every_key_and_no_other() -> None:
    """A key without its line, or a line without its key, would mislead an operator."""
    shown = {key for key in default_lines() if not key.startswith("engine.env.")}
    assert shown | {"engine.env"} == set(known_keys())


@pytest.mark.parametrize("key", [key for key in known_keys() if key != "engine.env"])
def test_the_commented_file_shows_the_default(key: str) -> None:
    """What stands behind the comment sign is what holds without it."""
    assert tomllib.loads(f"x = {default_lines()[key]}")["x"] == defaults()[key]


def test_the_commented_file_is_valid_as_it_is(write: Write) -> None:
    """The file that init writes can be used unedited."""
    assert same(config.load(write(default_config().decode())), Config())


def test_the_commented_file_is_valid_with_every_line_uncommented(write: Write) -> None:
    """With every line uncommented the file loads and gives the defaults."""
    text = default_config().decode()
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in text.splitlines()
    ]
    loaded = config.load(write("\n".join(lines)))
    changed = loaded.model_copy(update={"engine": EngineConfig()})
    assert same(changed, Config())
    assert loaded.engine.env == {"HF_HUB_OFFLINE": "1"}


# -- where values come from ---------------------------------------------------------


def test_defaults_hold_without_a_file() -> None:
    """No file at all is a configuration."""
    assert same(config.load(), Config())


def test_the_systems_file_is_found(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the file in its usual place counts."""
    monkeypatch.setattr(config, "DEFAULT_PATH", write('spool = "/a"'))
    assert config.load().spool == Path("/a")


def test_the_environment_names_a_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """INBOX_DAEMON_CONFIG stands in for the argument, which wins over it."""
    monkeypatch.setenv("INBOX_DAEMON_CONFIG", str(write('spool = "/a"')))
    assert config.load().spool == Path("/a")
    path = write('spool = "/b"')
    assert config.load(path.rename(path.with_name("other.toml"))).spool == Path("/b")


def test_the_environment_wins_over_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable replaces its key alone; the rest of the section comes from the file."""
    monkeypatch.setenv("INBOX_DAEMON_RUN__MAX_ATTEMPTS", "7")
    loaded = config.load(write("[run]\nmax_attempts = 2\nchunk_min = 9"))
    assert (loaded.run.max_attempts, loaded.run.chunk_min) == (7, 9)


def test_the_command_line_wins_over_all(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """--spool overrides file and environment, and may be relative."""
    monkeypatch.setenv("INBOX_DAEMON_SPOOL", "/env")
    monkeypatch.chdir("/")
    assert config.load(write('spool = "/file"'), spool=Path("here")).spool == Path("/here")


@pytest.mark.parametrize(
    ("name", "text", "section", "key", "value"),
    [
        ("INTAKE__SETTLE_S", "0.5", "intake", "settle_s", 0.5),
        ("INTAKE__ON_FULL", "hold", "intake", "on_full", "hold"),
        ("LIMITS__MAX_FILE_BYTES", "1000", "limits", "max_file_bytes", 1000),
        ("ENGINE__MODEL", "org/name", "engine", "model", "org/name"),
        ("ENGINE__ARGS", '["--dtype", "float32"]', "engine", "args", ["--dtype", "float32"]),
        ("ENGINE__COMMAND", "[]", "engine", "command", []),
        ("ENGINE__ENV", '{"HF_HUB_OFFLINE": "1"}', "engine", "env", {"HF_HUB_OFFLINE": "1"}),
        ("ENGINE", '{"model": "m"}', "engine", "model", "m"),
        ("ENDPOINT__URL", "unix:/run/x", "endpoint", "url", "unix:/run/x"),
    ],
)
def test_the_environment_can_set_each_kind_of_value(
    name: str, text: str, section: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and words are written plainly, lists and tables as JSON."""
    monkeypatch.setenv(config.ENV_PREFIX + name, text)
    assert getattr(getattr(config.load(), section), key) == value


@pytest.mark.parametrize("key", known_keys())
def test_the_environment_can_set_every_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key has its variable, and takes its own default from it."""
    value = defaults()[key]
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv(config.ENV_PREFIX + key.upper().replace(".", "__"), text)
    assert same(config.load(), Config())


# -- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wrong", "meant"),
    [
        ('spol = "/x"', "spol", "spool"),
        ("[limit]\nmax_queue_depth = 1", "limit", "limits"),
        ('[engin]\nmodel = "m"', "engin", "engine"),
        ('[engine]\nmodle = "m"', "engine.modle", "engine.model"),
        ("[run]\nmax_atempts = 1", "run.max_atempts", "run.max_attempts"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(
    text: str, wrong: str, meant: str, write: Write
) -> None:
    """A mistyped key is reported with the likely key and the file's name."""
    path = write(text)
    assert f"{wrong} is no setting. Did you mean {meant}?" in refusal(path)
    assert str(path) in refusal(path)


def test_a_key_like_no_other_is_refused_without_a_guess(write: Write) -> None:
    """Nothing is suggested that is nothing like what was written."""
    assert refusal(write("qqqq = 1")).endswith("qqqq is no setting.")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("INBOX_DAEMON_SPOL", "INBOX_DAEMON_SPOOL"),
        ("INBOX_DAEMON_LIMITS__MAX_QUEUE_DEPHT", "INBOX_DAEMON_LIMITS__MAX_QUEUE_DEPTH"),
        ("INBOX_DAEMON_LIMITS_MAX_QUEUE_DEPTH", "INBOX_DAEMON_LIMITS__MAX_QUEUE_DEPTH"),
        ("INBOX_DAEMON_ENGINE__ENV__HF_HUB_OFFLINE", "INBOX_DAEMON_ENGINE__ENV"),
        ("inbox_daemon_spol", "INBOX_DAEMON_SPOOL"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_one(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that would not do what it says is an error that names the right one."""
    monkeypatch.setenv(name, "1")
    assert f"{name}, which is no setting. Did you mean {meant}?" in refusal()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intake.settle_s", "0"),
        ("intake.settle_s", "-1"),
        ("intake.settle_s", "inf"),
        ("intake.settle_s", "nan"),
        ("intake.settle_s", '"soon"'),
        ("intake.dedup_days", "-0.1"),
        ("intake.on_full", '"maybe"'),
        ("limits.max_file_bytes", "0"),
        ("limits.max_file_bytes", "1.5"),
        ("limits.max_file_bytes", "9007199254740993"),
        ("limits.max_json_depth", "1"),
        ("limits.max_json_depth", "251"),
        ("limits.max_queue_depth", "0"),
        ("limits.body.max_n", "0"),
        ("limits.body.allow", '["stream"]'),
        ("limits.body.allow", '["background"]'),
        ("limits.body.allow", '["a b"]'),
        ("limits.body.media_domains", '["https://x.org"]'),
        ("limits.body.media_domains", '["X.org"]'),
        ("limits.body.max_schema_depth", "251"),
        ("engine.args", '"--flag"'),
        ("engine.env", '{ A = ["x"] }'),
        ("run.max_attempts", "0"),
        ("run.drain_s", "26"),
        ("gpu.index", "-1"),
        ("gpu.stop_c", "151"),
        ("status.interval_s", "inf"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_full_name(
    key: str, value: str, write: Write
) -> None:
    """The operator reads which key of which section is wrong."""
    section, _, name = key.rpartition(".")
    assert f"{key}" in refusal(write(f"[{section}]\n{name} = {value}"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('spool = "relative"', "spool must be an absolute path"),
        ("[run]\nchunk_min = 6000", "chunk_min must not be above chunk_max"),
        ("[gpu]\nwarn_c = 90", "resume_c must be below warn_c, and warn_c below stop_c"),
        ('[endpoint]\nurl = "localhost:8000"', "must be unix:/absolute/path"),
        ('[endpoint]\nurl = "unix:relative"', "must be unix:/absolute/path"),
        ("engine = 5", "engine: "),
    ],
)
def test_values_that_do_not_go_together_are_refused(text: str, words: str, write: Write) -> None:
    """What single bounds cannot say is said in words."""
    assert words in refusal(write(text))
    assert "Value error" not in refusal(write(text))


@pytest.mark.parametrize("name", ["INBOX_DAEMON_ENGINE__ARGS", "INBOX_DAEMON_ENGINE"])
def test_a_list_that_is_no_json_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that was written plainly in the environment is an error that shows the form."""
    monkeypatch.setenv(name, "--dtype float32")
    assert f"{name} must be written as JSON" in refusal()


def test_a_file_that_is_no_toml_is_refused(write: Write) -> None:
    """The parser's own place of the mistake is passed on."""
    assert "is not TOML: " in refusal(write("[engine"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are reported as that."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(path)


def test_a_named_file_that_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defaults never replace a file that was asked for."""
    assert "no configuration file" in refusal(tmp_path / "none.toml")
    monkeypatch.setenv("INBOX_DAEMON_CONFIG", str(tmp_path))
    assert "no configuration file" in refusal()


# -- the object ---------------------------------------------------------------------


def test_a_configuration_never_changes() -> None:
    """Neither the whole nor a section can be assigned to."""
    loaded = Config()
    with pytest.raises(ValueError, match="frozen"):
        setattr(loaded, "spool", Path("/x"))  # noqa: B010 - the type checker knows it too
    with pytest.raises(ValueError, match="frozen"):
        setattr(loaded.run, "max_attempts", 1)  # noqa: B010 - likewise


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ({}, ""),
        ({"model": "org/name"}, "name"),
        ({"model": "/models/mine/"}, "mine"),
        ({"model": "org/name", "served_model_name": "chosen"}, "chosen"),
    ],
)
def test_the_served_name_is_the_models_last_part(engine: dict[str, str], name: str) -> None:
    """Requests use the configured name, else the last part of the model's path."""
    assert EngineConfig.model_validate(engine).served_name == name


@pytest.mark.parametrize(
    "text",
    [
        'spool = "relative"\n[engine.env]\nHF_TOKEN = "s3cret"\n',
        'spool = "/x"\n[engine.env]\nHF_TOKEN = ["s3cret"]\n',
        'spool = "/x"\n[endpoint]\nurl = "ftp://me:s3cret@host"\n',
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, text: str) -> None:
    """What is wrong is said without the rest of the file, a variable or a password."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    assert "cannot be used" in refused.value.message
    assert "s3cret" not in refused.value.message
