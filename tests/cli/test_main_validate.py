"""`validate` tells a sender every fault with its line, and drops nothing."""

from pathlib import Path

from daemon_process import inbox_daemon
from job_files import chat, chats


def write(path: Path, lines: list[bytes]) -> Path:
    """Write a file of lines."""
    path.write_bytes(b"".join(lines))
    return path


def test_good_file_is_ok(tmp_path: Path) -> None:
    """A file that would be accepted ends with 0 and the count of its requests."""
    path = write(tmp_path / "good.jsonl", chats(7))
    found = inbox_daemon("validate", path, "--spool", tmp_path / "spool")
    assert (found.returncode, found.stdout) == (0, f"{path}: ok, 7 requests\n")
    assert not (tmp_path / "spool").exists()


def test_every_fault_is_shown_with_its_line(tmp_path: Path) -> None:
    """Each bad line is named with number and code, also beyond the first hundred; ends with 1."""
    good = chat("good", "hello")
    path = write(tmp_path / "bad.jsonl", [good, b"no\n", good, *[b"{}\n"] * 150])
    found = inbox_daemon("validate", path, "--spool", tmp_path)
    assert found.returncode == 1
    faults = found.stdout.splitlines()
    assert len(faults) == 152
    assert faults[0].startswith(f"{path}: line 2: invalid_json: ")
    assert faults[1].startswith(f"{path}: line 3: duplicate_custom_id: ")
    assert faults[-1].startswith(f"{path}: line 153: invalid_request: ")


def test_limits_of_the_configuration_count(tmp_path: Path) -> None:
    """A file is held to the limits that the daemon with this configuration has."""
    config = tmp_path / "config.toml"
    config.write_text(
        f'spool = "{tmp_path}"\n[limits]\nmax_requests_per_job = 3\nmax_file_bytes = 2000\n'
        '[engine]\nserved_model_name = "mine"\n'
    )
    many = write(tmp_path / "many.jsonl", chats(4))
    large = write(tmp_path / "large.jsonl", [chat("long", "x" * 2000)])
    other = write(tmp_path / "other.jsonl", chats(1, model="other"))
    for path, code in ((many, "too_many_requests"), (large, "too_large"), (other, "unknown_model")):
        found = inbox_daemon("validate", path, "--config", config)
        assert found.returncode == 1
        assert code in found.stdout


def test_one_bad_file_of_several_is_enough(tmp_path: Path) -> None:
    """All files are checked, and one that is bad ends the command with 1."""
    good, empty = write(tmp_path / "good.jsonl", chats(1)), write(tmp_path / "empty.jsonl", [])
    found = inbox_daemon("validate", empty, good, "--spool", tmp_path)
    assert found.returncode == 1
    assert f"{empty}: empty: " in found.stdout
    assert f"{good}: ok" in found.stdout


def test_name_that_is_no_jobs_is_a_fault(tmp_path: Path) -> None:
    """A name that inbox/ would refuse is reported before anything is sent."""
    found = inbox_daemon("validate", write(tmp_path / "a b.jsonl", chats(1)), "--spool", tmp_path)
    assert found.returncode == 1
    assert "bad_name" in found.stdout


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, ends with 1 and one sentence on stderr."""
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("none.jsonl", "folder.jsonl"):
        found = inbox_daemon("validate", tmp_path / name, "--spool", tmp_path)
        assert (found.returncode, found.stdout) == (1, "")
        assert len(found.stderr.strip().splitlines()) == 1


def test_lines_that_become_dead_letters_are_still_shown(tmp_path: Path) -> None:
    """With on_invalid_line = "dead_letter" a bad line is named, and the file is accepted."""
    path = write(tmp_path / "partly.jsonl", [*chats(2), b"no\n"])
    env = {"INBOX_DAEMON_INTAKE__ON_INVALID_LINE": "dead_letter"}
    found = inbox_daemon("validate", path, "--spool", tmp_path, **env)
    assert found.returncode == 0
    assert f"{path}: line 3: invalid_json: " in found.stdout
    assert f"{path}: ok, 3 requests" in found.stdout


def test_last_line_without_a_newline_counts(tmp_path: Path) -> None:
    """A missing newline at the end is no fault; a cut last line is one."""
    whole = b"".join(chats(2))
    good = write(tmp_path / "good.jsonl", [whole[:-1]])
    cut = write(tmp_path / "cut.jsonl", [whole[:-10]])
    assert inbox_daemon("validate", good, "--spool", tmp_path).returncode == 0
    found = inbox_daemon("validate", cut, "--spool", tmp_path)
    assert found.returncode == 1
    assert "line 2" in found.stdout
