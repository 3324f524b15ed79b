"""The command line without a daemon: setting up, configuration, schemas, version."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from daemon_process import inbox_daemon
from job_files import SCHEMAS

NAMES = sorted(path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json"))
FOLDERS = {"inbox", "claimed", "queued", "running", "outbox", "rejected", "quarantine", "ledger"}


def test_init_makes_the_spool_and_a_configuration(tmp_path: Path) -> None:
    """`init --spool` makes all folders and a configuration that every command accepts."""
    spool = tmp_path / "deep" / "spool"
    made = inbox_daemon("init", "--spool", spool)
    assert made.returncode == 0, made.stderr
    assert {path.name for path in spool.iterdir() if path.is_dir()} >= FOLDERS
    config = spool / "config.toml"
    assert str(config) in made.stdout
    jobs = inbox_daemon("jobs", "--json", "--config", config)
    assert (jobs.returncode, json.loads(jobs.stdout)) == (0, [])


def test_second_init_changes_nothing(tmp_path: Path) -> None:
    """`init` on a spool that is in use leaves the edited configuration and the files alone."""
    inbox_daemon("init", "--spool", tmp_path)
    config, drop = tmp_path / "config.toml", tmp_path / "inbox" / "job.jsonl"
    config.write_text(config.read_text() + "# mine\n")
    drop.write_text("{}\n")
    before = config.read_text()
    again = inbox_daemon("init", "--spool", tmp_path)
    assert again.returncode == 0
    assert "left as it is" in again.stdout
    assert (config.read_text(), drop.read_text()) == (before, "{}\n")


def test_init_writes_the_configuration_where_it_is_asked_to(tmp_path: Path) -> None:
    """`init --config` writes that file, with the spool in it, and `run`'s readers accept it."""
    config, spool = tmp_path / "etc" / "own.toml", tmp_path / "spool"
    assert inbox_daemon("init", "--config", config, "--spool", spool).returncode == 0
    assert f'spool = "{spool}"' in config.read_text()
    assert inbox_daemon("jobs", "--config", config).returncode == 0


def test_written_configuration_names_every_default(tmp_path: Path) -> None:
    """Uncommented, the configuration that `init` writes is accepted as it is."""
    inbox_daemon("init", "--spool", tmp_path)
    config = tmp_path / "config.toml"
    uncommented = re.sub(r"^#(?! )", "", config.read_text(), flags=re.MULTILINE)
    config.write_text(uncommented)
    assert inbox_daemon("jobs", "--config", config).returncode == 0
    assert "max_total_queued_requests = 100000" in uncommented.splitlines()


def test_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A misspelt key ends with 2 and one sentence that names the key it may have meant."""
    config = tmp_path / "config.toml"
    config.write_text(f'spool = "{tmp_path}"\n[intake]\nsetle_s = 3\n')
    found = inbox_daemon("status", "--config", config)
    assert (found.returncode, found.stdout) == (2, "")
    assert "intake.setle_s" in found.stderr
    assert "intake.settle_s" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_unknown_variable_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A misspelt setting in the environment is refused like one in the file."""
    found = inbox_daemon("status", "--spool", tmp_path, INBOX_DAEMON_ENGINE__MODLE="x")
    assert found.returncode == 2
    assert "INBOX_DAEMON_ENGINE__MODEL?" in found.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spool = ", "not TOML"),
        ('spool = "relative"', "absolute"),
        ("[limits]\nmax_queue_depth = 0", "limits.max_queue_depth"),
        ('[intake]\non_full = "wait"', "intake.on_full"),
        ("[run]\nchunk_min = 9000", "chunk_min"),
        ('[endpoint]\nurl = "localhost:8000"', "endpoint.url"),
    ],
)
def test_value_out_of_bounds_is_named(tmp_path: Path, text: str, words: str) -> None:
    """A value that cannot be used is refused with its key's full name."""
    config = tmp_path / "config.toml"
    config.write_text(text + "\n")
    found = inbox_daemon("jobs", "--config", config)
    assert (found.returncode, found.stdout) == (2, "")
    assert words in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("by_variable", [False, True], ids=["option", "variable"])
def test_missing_configuration_is_an_error(
    tmp_path: Path,
    by_variable: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A configuration that was named and does not exist is never replaced by defaults."""
    missing = tmp_path / "none.toml"
    if by_variable:
        found = inbox_daemon("status", INBOX_DAEMON_CONFIG=str(missing))
    else:
        found = inbox_daemon("status", "--config", missing)
    assert found.returncode == 2
    assert str(missing) in found.stderr
    assert "init" in found.stderr


def test_environment_and_option_override_the_file(tmp_path: Path) -> None:
    """The environment counts before the file, and --spool before both."""
    config = tmp_path / "config.toml"
    config.write_text(f'spool = "{tmp_path / "file"}"\n')
    by_variable, by_option = tmp_path / "variable", tmp_path / "option"
    env = {"INBOX_DAEMON_CONFIG": str(config), "INBOX_DAEMON_SPOOL": str(by_variable)}
    assert str(tmp_path / "file") in inbox_daemon("status", "--config", config).stderr
    assert str(by_variable) in inbox_daemon("status", **env).stderr
    assert str(by_option) in inbox_daemon("status", "--spool", by_option, **env).stderr


@pytest.mark.parametrize("name", NAMES)
def test_schema_prints_what_is_published(name: str) -> None:
    """`schema NAME` prints the file of schemas/, a valid JSON Schema."""
    shown = inbox_daemon("schema", name)
    assert shown.returncode == 0
    assert shown.stdout == (SCHEMAS / f"{name}.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(shown.stdout))


def test_unknown_schema_names_those_there_are() -> None:
    """`schema` with a wrong name, or none, lists the names and ends with 1."""
    for words in (["schema", "nonsense"], ["schema"]):
        found = inbox_daemon(*words)
        assert found.returncode == 1
        assert all(name in found.stderr for name in NAMES)


def test_version_is_shown() -> None:
    """--version prints the name and the version, and nothing else."""
    found = inbox_daemon("--version")
    assert found.returncode == 0
    assert re.fullmatch(r"inbox-daemon \d+\.\d+\.\d+\S*\n", found.stdout)


def test_wrong_usage_ends_with_2() -> None:
    """An unknown command or option, or a missing argument, is wrong usage."""
    for words in (["nonsense"], ["status", "--nonsense"], ["job"], ["validate"]):
        found = inbox_daemon(*words)
        assert (found.returncode, found.stdout) == (2, "")
        assert "Traceback" not in found.stderr


def test_spool_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    """A spool in an impossible place ends `run` with 2 and one sentence."""
    blocked = tmp_path / "file"
    blocked.touch()
    found = inbox_daemon("run", "--spool", blocked / "spool")
    assert found.returncode == 2
    assert str(blocked) in found.stderr
    assert "Traceback" not in found.stderr


def test_command_line_starts_without_the_engine() -> None:
    """The command line and the daemon import neither torch nor vllm."""
    found = inbox_daemon("schema", "request", PYTHONPROFILEIMPORTTIME="1")
    assert "torch" not in found.stderr
    assert "vllm" not in found.stderr
