"""Setting up: a spool and a configuration that can be used at once."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import make_spool
from inbox_daemon.cli import setup
from inbox_daemon.contract import config
from inbox_daemon.contract.errors import ConfigError, LedgerError, SpoolError
from inbox_daemon.ledger import Ledger


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the machine's own configuration out of the tests."""
    monkeypatch.delenv("INBOX_DAEMON_CONFIG", raising=False)
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")


def test_init_makes_a_spool_and_a_configuration(tmp_path: Path) -> None:
    """Both are ready to be used: the file names the spool it was made for."""
    spool = tmp_path / "a spool"
    done = setup.init(None, spool)
    assert config.load(spool / "config.toml").spool == spool
    assert (spool / "inbox" / "high").is_dir()
    assert str(spool / "config.toml") in done[1]


def test_init_a_second_time_changes_nothing(tmp_path: Path) -> None:
    """What an operator has edited stays."""
    setup.init(None, tmp_path / "spool")
    edited = tmp_path / "spool" / "config.toml"
    edited.write_text('spool = "/elsewhere"')
    (tmp_path / "spool" / "inbox" / "job.jsonl").write_bytes(b"x")
    done = setup.init(None, tmp_path / "spool")
    assert "left as it is" in done[1]
    assert edited.read_text() == 'spool = "/elsewhere"'
    assert (tmp_path / "spool" / "inbox" / "job.jsonl").read_bytes() == b"x"


def test_init_makes_the_spool_that_a_configuration_names(tmp_path: Path) -> None:
    """An existing file is obeyed."""
    path = tmp_path / "config.toml"
    path.write_text(f'spool = "{tmp_path}/named"')
    setup.init(path, None)
    assert (tmp_path / "named" / "outbox").is_dir()


@pytest.mark.parametrize("by_environment", [False, True])
def test_init_writes_the_configuration_where_it_is_asked_for(
    tmp_path: Path,
    by_environment: bool,  # noqa: FBT001 - either way
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A named file that is missing is made, whether an option or the environment names it."""
    path = tmp_path / "etc" / "config.toml"
    if by_environment:
        monkeypatch.setenv("INBOX_DAEMON_CONFIG", str(path))
    setup.init(None if by_environment else path, tmp_path / "spool")
    assert config.load(path).spool == tmp_path / "spool"
    assert not (tmp_path / "spool" / "config.toml").exists()


def test_a_spool_that_is_named_brings_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--spool` alone, the file that init wrote there counts; a named one comes first."""
    monkeypatch.delenv(config.PATH_VARIABLE, raising=False)
    setup.init(None, tmp_path)
    written = tmp_path / "config.toml"
    ours = written.read_text().replace('#served_model_name = ""', 'served_model_name = "mine"')
    written.write_text(ours)
    assert config.load(spool=tmp_path).engine.served_model_name == "mine"
    (tmp_path / "other.toml").write_text("")
    monkeypatch.setenv(config.PATH_VARIABLE, str(tmp_path / "other.toml"))
    found = config.load(spool=tmp_path)
    assert (found.engine.served_model_name, found.spool) == ("", tmp_path)


def test_init_says_what_it_could_not_make(tmp_path: Path) -> None:
    """A path through a file cannot hold a spool or a configuration."""
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match="--spool"):
        setup.init(None, tmp_path / "file" / "spool")
    with pytest.raises(ConfigError, match="--config"):
        setup.init(tmp_path / "file" / "config.toml", tmp_path / "spool")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_path_can_be_written_into_toml(text: str) -> None:
    """Quotes, backslashes and control characters come back as they were."""
    assert tomllib.loads(f"x = {setup.toml_string(text)}") == {"x": text}


# -- compact ------------------------------------------------------------------------


def test_compacting_keeps_what_the_ledger_holds(tmp_path: Path) -> None:
    """The ledger is smaller afterwards and says the same."""
    spool = make_spool(tmp_path)
    ledger = Ledger(spool.ledger)
    ledger.put_state("kept", b"1")
    ledger.put_state("big", b"x" * 8_000_000)
    ledger.put_state("big", None)
    ledger.close()
    before = (spool.ledger / "data.mdb").stat().st_size
    assert "KiB" in setup.compact(spool)
    assert (spool.ledger / "data.mdb").stat().st_size < before / 10
    ledger = Ledger(spool.ledger)
    assert (ledger.get_state("kept"), ledger.get_state("big")) == (b"1", None)
    ledger.close()
    assert list(spool.claimed.iterdir()) == []


def test_compacting_leaves_a_running_daemons_ledger_alone(tmp_path: Path) -> None:
    """While another process holds the spool nothing is touched."""
    spool, other = make_spool(tmp_path), make_spool(tmp_path)
    Ledger(spool.ledger).close()
    other.lock({"pid": 7, "since": "now"})
    with pytest.raises(SpoolError, match="process 7"):
        setup.compact(spool)
    other.unlock()


def test_compacting_nothing_is_refused_in_words(tmp_path: Path) -> None:
    """Before a daemon has run there is no ledger, and no traceback either."""
    with pytest.raises(LedgerError, match="no ledger"):
        setup.compact(make_spool(tmp_path))
