"""Options: `--config` and `--spool` before the command, after it, or both."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from inbox_daemon.cli import main
from inbox_daemon.cli.options import USAGE


@pytest.fixture(autouse=True)
def _no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INBOX_DAEMON_CONFIG", raising=False)


def shown(*words: str | Path) -> str:
    """What a command says of a spool on which nothing has run: it names it."""
    return CliRunner().invoke(main.app, list(map(str, words))).output


@pytest.fixture
def spools(tmp_path: Path) -> tuple[Path, Path]:
    """Two spools, and beside each a configuration that names it: NAME.toml."""
    names = tmp_path / "one", tmp_path / "two"
    for path in names:
        path.mkdir()
        path.with_suffix(".toml").write_text(f'spool = "{path}"\n')
    return names


def test_the_spool_may_stand_before_the_command(spools: tuple[Path, Path]) -> None:
    """Either place names the spool."""
    assert str(spools[0]) in shown("--spool", spools[0], "status")
    assert str(spools[0]) in shown("status", "--spool", spools[0])


def test_the_configuration_may_stand_before_the_command(spools: tuple[Path, Path]) -> None:
    """Either place names the configuration."""
    one = spools[0].with_suffix(".toml")
    assert str(spools[0]) in shown("--config", one, "status")
    assert str(spools[0]) in shown("status", "--config", one)


def test_what_stands_after_the_command_wins(spools: tuple[Path, Path]) -> None:
    """The nearer option is the one that is meant; both kinds combine."""
    one, two = spools
    assert str(two) in shown("--spool", one, "status", "--spool", two)
    configs = one.with_suffix(".toml"), two.with_suffix(".toml")
    assert str(two) in shown("--config", configs[0], "status", "--config", configs[1])
    assert str(two) in shown("--config", configs[0], "status", "--spool", two)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_dead_takes_them_at_each_of_its_places(tmp_path: Path, at: int) -> None:
    """Before `dead`, between it and its command, and at the end."""
    missing = tmp_path / "missing.toml"
    words: list[str | Path] = ["dead", "list"]
    words[at:at] = ["--config", missing]
    result = CliRunner().invoke(main.app, list(map(str, words)))
    assert (result.exit_code, "missing.toml" in result.output) == (USAGE, True)


def test_one_call_leaves_nothing_to_the_next(spools: tuple[Path, Path]) -> None:
    """Options of an earlier call in the same process are gone."""
    shown("--spool", spools[0], "status")
    assert str(spools[0]) not in shown("status", "--config", spools[1].with_suffix(".toml"))


@pytest.mark.parametrize("words", [["--help"], ["dead", "--help"], ["status", "--help"]])
def test_help_names_both_options(words: list[str]) -> None:
    """Wherever they may stand they are in the help."""
    found = shown(*words)
    assert "--config" in found
    assert "--spool" in found
