"""TOML and environment to one frozen, checked Config.

Purpose: everything that can be set, its default and its bounds, in one place.
Invariants: an unknown key is refused with the nearest known one named; a value out
of bounds is refused with the key's full name; the object never changes afterwards.
Precedence, highest first: the command line, the environment
(`INBOX_DAEMON_ENGINE__MODEL=…`), the TOML file, the defaults below.
Known limit: a list or a table in the environment is written as JSON, as a whole.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from inbox_daemon.contract.errors import ConfigError

# Where `init` writes the configuration of a spool that a user runs by hand.
SPOOL_FILE = "config.toml"
DEFAULT_PATH = Path("/etc/inbox-daemon/config.toml")
PATH_VARIABLE = "INBOX_DAEMON_CONFIG"
ENV_PREFIX = "INBOX_DAEMON_"

# What no setting opens, because the answer would be none.
STREAMED = "results are written as a whole"
NEVER: dict[str, str] = {
    "stream": STREAMED,
    "background": "the answer has to come in the response",
}

# Infinity has no place in the documents that show these, nor has what JSON's readers round.
_LARGEST = 1 << 53
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Days = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
Bytes = Annotated[int, Field(ge=0, le=_LARGEST)]
Celsius = Annotated[int, Field(ge=1, le=150)]
Tally = Annotated[int, Field(ge=0, le=_LARGEST)]
Name = Annotated[str, Field(pattern=r"^[!#-\[\]-~]{1,60}$")]
# As a URL's host is compared, here and in vLLM: in lower case, without a port.
Host = Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,253}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class IntakeConfig(_Section):
    """When a drop counts as complete, and what happens to one that cannot be taken."""

    settle_s: Seconds = 2.0
    scan_interval_s: Seconds = 2.0
    incomplete_s: Seconds = 300
    on_full: Literal["reject", "hold"] = "reject"
    on_invalid_line: Literal["reject", "dead_letter"] = "reject"
    dedup_days: Days = 7
    ageing_s: Seconds = 3600


class BodyConfig(_Section):
    """What of a request's body may reach the engine.

    `allow` opens what is refused by name; `media_domains` are hosts that media may be
    fetched from.  `max_inputs` counts the texts of one request, prompts times answers.
    """

    allow: list[Name] = []
    media_domains: list[Host] = []
    max_n: Count = 16
    max_inputs: Count = 2048
    max_logprobs: Tally = 20
    max_stop: Tally = 4
    max_stop_chars: Count = 256
    max_bad_words: Tally = 128
    max_token_ids: Tally = 1024
    max_media: Tally = 16
    max_tools: Tally = 128
    max_tools_bytes: Count = 262_144
    max_schema_bytes: Count = 65_536
    max_schema_depth: Annotated[int, Field(ge=1, le=250)] = 32
    max_template_kwargs_bytes: Count = 16_384
    max_template_kwargs_depth: Annotated[int, Field(ge=1, le=250)] = 8

    @field_validator("allow")
    @classmethod
    def _check_allow(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in NEVER:
                msg = f"{name} cannot be allowed: {NEVER[name]}"
                raise ValueError(msg)
        return names


class LimitsConfig(_Section):
    """How much one line, one job and the whole queue may hold."""

    max_file_bytes: Count = 209_715_200
    max_line_bytes: Count = 1_048_576
    # Beyond this a request could be read but not written again (json_guard.WRITABLE_DEPTH).
    max_json_depth: Annotated[int, Field(ge=2, le=250)] = 64
    max_requests_per_job: Count = 50_000
    max_queue_depth: Count = 5
    max_total_queued_requests: Count = 100_000
    body: BodyConfig = BodyConfig()


class EngineConfig(_Section):
    """The child process that answers requests: vLLM's server unless `command` is set."""

    model: str = ""
    served_model_name: str = ""
    args: list[str] = []
    command: list[str] = []
    start_timeout_s: Seconds = 900
    hang_s: Seconds = 180
    env: dict[str, str] = {}

    @property
    def served_name(self) -> str:
        """The model name that requests use; empty when nothing was configured."""
        return self.served_model_name or Path(self.model).name


class EndpointConfig(_Section):
    """A server that someone else runs, instead of a child."""

    url: str = ""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not re.match(r"(unix:/|https?://[^/])", url):
            msg = "must be unix:/absolute/path, http://host:port or https://host:port"
            raise ValueError(msg)
        return url


class RunConfig(_Section):
    """How requests are tried and how often results are made to count."""

    max_attempts: Count = 3
    request_timeout_s: Seconds = 600
    overload_s: Seconds = 3600
    commit_interval_s: Seconds = 1.0
    drain_s: Annotated[float, Field(ge=0, le=25)] = 10.0
    max_in_flight_bytes: Count = 268_435_456
    max_answer_bytes: Count = 67_108_864
    chunk_min: Count = 500
    chunk_max: Count = 5000
    reorder: bool = True

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.chunk_min > self.chunk_max:
            msg = "chunk_min must not be above chunk_max"
            raise ValueError(msg)
        return self


class GpuConfig(_Section):
    """Which card, and the temperatures at which it is spared."""

    index: Annotated[int, Field(ge=0)] = 0
    warn_c: Celsius = 80
    stop_c: Celsius = 87
    resume_c: Celsius = 75

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.resume_c < self.warn_c < self.stop_c:
            msg = "resume_c must be below warn_c, and warn_c below stop_c"
            raise ValueError(msg)
        return self


class StatusConfig(_Section):
    """How often outbox/status.json is replaced at least."""

    interval_s: Seconds = 5


class ClockConfig(_Section):
    """How long a clock that jumped is to hold its new time before that is trusted."""

    hold_s: Seconds = 600


class DiskConfig(_Section):
    """How much room is left free; below it nothing is taken and nothing is sent."""

    min_free_bytes: Bytes = 1_073_741_824
    min_free_inodes: Annotated[int, Field(ge=0, le=_LARGEST)] = 10_000


class RetentionConfig(_Section):
    """How long ended things are kept and how many bytes they may take; 0 is no limit."""

    outbox_days: Days = 0
    outbox_max_bytes: Bytes = 0
    rejected_days: Days = 30
    rejected_max_bytes: Bytes = 2_147_483_648
    dead_letter_days: Days = 90
    dead_letter_max_bytes: Bytes = 2_147_483_648


class Config(_Section):
    """The whole configuration, checked and frozen."""

    spool: Path = Path("/srv/inbox-daemon")
    intake: IntakeConfig = IntakeConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()
    endpoint: EndpointConfig = EndpointConfig()
    run: RunConfig = RunConfig()
    gpu: GpuConfig = GpuConfig()
    status: StatusConfig = StatusConfig()
    clock: ClockConfig = ClockConfig()
    disk: DiskConfig = DiskConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="after")
    def _check_spool(self) -> Self:
        if not self.spool.is_absolute():
            msg = "spool must be an absolute path"
            raise ValueError(msg)
        return self


def load(path: Path | None = None, *, spool: Path | None = None, missing: bool = False) -> Config:
    """Read the configuration.

    `path` is the command line's `--config`; None means `$INBOX_DAEMON_CONFIG`, then the
    config.toml of the `spool` that was named, then /etc/inbox-daemon/config.toml, then the
    defaults.  `spool` overrides the key.
    `missing` says that the file is still to be made, so that the defaults stand for it.

    Raises ConfigError: the file is missing, is not TOML, or holds a key or a value
    that is not accepted.
    """
    source = None if missing else config_path(path, spool)
    known = {_variable(name) for name, _ in _fields(Config)} | {PATH_VARIABLE}
    variables = [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]
    for name in variables:
        if name.upper() not in known:
            nearest = _nearest(name.upper(), known)
            msg = f"the environment sets {name}, which is no setting.{nearest}"
            raise ConfigError("config_invalid", msg)
    overrides: dict[str, Any] = {} if spool is None else {"spool": Path(spool).absolute()}
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8")) if source else {}
        if variables:
            return _with_environment(values, overrides)
        return Config.model_validate(values | overrides)
    except ValidationError as error:
        raise ConfigError("config_invalid", _explain(error, source)) from None
    except tomllib.TOMLDecodeError as error:
        msg = f"{source} is not TOML: {error}"
        raise ConfigError("config_invalid", msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{source} cannot be read: {error}"
        raise ConfigError("config_unreadable", msg) from None


def config_path(path: Path | None = None, spool: Path | None = None) -> Path | None:
    """Say which file counts: the argument, the environment's, the spool's, the system's, or none.

    Raises ConfigError: a file was named that does not exist.
    """
    named = path or named_by_environment()
    if named is None:
        usual = ([spool / SPOOL_FILE] if spool else []) + [DEFAULT_PATH]
        return next((file for file in usual if os.path.isfile(file)), None)  # noqa: PTH113 - never raises
    if not named.is_file():
        msg = f"there is no configuration file {named}; `inbox-daemon init` writes one"
        raise ConfigError("config_missing", msg)
    return named


def named_by_environment() -> Path | None:
    """The file that $INBOX_DAEMON_CONFIG names, whether it exists or not."""
    named = os.environ.get(PATH_VARIABLE)
    return Path(named) if named else None


def known_keys() -> list[str]:
    """Every key by its full dotted name, in the order of this module."""
    return [name for name, field in _fields(Config) if _section(field) is None]


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key and section by its full dotted name, each section before its keys."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        section = _section(field)
        if section is not None:
            yield from _fields(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _with_environment(values: dict[str, Any], overrides: dict[str, Any]) -> Config:
    """Return the configuration of a file's `values` under the environment's.

    Raises ConfigError: a list or table of the environment is no JSON; ValidationError.
    """
    # Loaded where a variable is set: it takes a third of a command's start.
    from pydantic_settings import (  # noqa: PLC0415
        BaseSettings,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
        SettingsError,
    )

    class EnvironmentConfig(BaseSettings, Config):
        model_config = SettingsConfigDict(
            frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__"
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base's signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Put the environment before the file; .env and secret folders are not read."""
            return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    try:
        return EnvironmentConfig(**overrides)
    except SettingsError:
        raise ConfigError("config_invalid", _explain_json()) from None


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", "__")


def _explain(error: ValidationError, source: Path | None) -> str:
    where = source or "the environment"
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = [name for name, _ in _fields(Config)]
            lines.append(f"{key} is no setting.{_nearest(key, known)}")
        else:
            words = fault["msg"].removeprefix("Value error, ")
            words = f"{key}: {words}" if key else words
            # Not a whole section, nor what may be a secret.
            found = fault["input"]
            shown = without_password(found) if isinstance(found, str) else found
            plain = isinstance(found, str | int | float) and "env" not in fault["loc"]
            lines.append((f"{words} (got {shown!r})" if plain else words)[:300])
    return f"{where} cannot be used: " + "; ".join(lines)


def without_password(url: str) -> str:
    """Return a URL as it may be shown: without the user and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)


def _explain_json() -> str:
    """Name the variables that hold a list or a table and are no JSON."""
    bad = []
    for name, field in _fields(Config):
        if _section(field) is not None or isinstance(field.default, list | dict):
            try:
                json.loads(os.environ.get(_variable(name), "{}"))
            except ValueError:
                bad.append(_variable(name))
    example = """'["--flag"]' or '{"KEY": "value"}'"""
    return f"the environment's {', '.join(bad)} must be written as JSON, such as {example}"


def _nearest(name: str, known: "set[str] | list[str]") -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""
