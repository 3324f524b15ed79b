"""Benchmarks: each runs once at a small size, so that none can rot; no time is asserted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import models, workload
from job_files import Json

CHECKOUT = Path(__file__).parents[2]


def run(name: str, tmp_path: Path, *words: str) -> Json:
    """Run a benchmark by its command and return its JSON document."""
    path = tmp_path / f"{name}.json"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INBOX_DAEMON_")}
    command = [sys.executable, "-m", f"bench.{name}", "--json", str(path), *words]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "goals" in done.stdout or name == "engine"
    document: Json = json.loads(path.read_bytes())
    assert document["benchmark"] == name
    assert document["machine"]["cores"] > 0
    return document


@pytest.mark.slow
def test_the_machinery_is_compared_with_a_bare_loop(tmp_path: Path) -> None:
    """Rates and CPU time of both ways come out, one value a repetition."""
    found = run("machinery", tmp_path, "--requests", "300", "--repeat", "2")["figures"]
    for name in ("bare_rps", "daemon_rps", "bare_cpu_us", "daemon_cpu_us", "quick_rps", "ratio"):
        assert len(found[name]["values"]) == 2
        assert found[name]["median"] >= 0


@pytest.mark.slow
def test_validation_is_compared_with_parsing(tmp_path: Path) -> None:
    """Each length of line gets the figures of each way that is asked for."""
    words = ("--megabytes", "0.2", "--repeat", "2", "--no-vllm")
    found = run("validate", tmp_path, *words)["figures"]
    assert len(found) == 3
    for shape in found.values():
        assert shape["lines"] > 0
        assert {"validate_file", "orjson.loads alone"} <= shape.keys()


@pytest.mark.vllm
def test_validation_is_compared_with_what_vllm_does(tmp_path: Path) -> None:
    """The installed vLLM's own check of the same lines takes part, and takes every line."""
    found = run("validate", tmp_path, "--megabytes", "0.1", "--repeat", "1")["figures"]
    assert all("vllm run-batch's check" in shape for shape in found.values())


@pytest.mark.slow
def test_growth_starts_and_recovery_are_measured(tmp_path: Path) -> None:
    """All sizes, the start after a kill and the start with a full queue come out."""
    plot = tmp_path / "plot.png"
    words = ("--sizes", "200", "1500", "--job", "1000", "--repeat", "1", "--plot", str(plot))
    found = run("scale", tmp_path, *words)["figures"]
    assert [row["requests"] for row in found["sizes"]] == [200, 1500]
    assert all(row["most_mib"] > 0 for row in found["sizes"])
    assert found["recovery"]["seconds"]["values"]
    assert found["full_queue"]["jobs"] == 5


@pytest.mark.slow
def test_the_most_memory_is_measured(tmp_path: Path) -> None:
    """Each case has its peaks: of answers, lines and what is done with dead letters."""
    large = ("--sizes", "200000", "--volume", "4", "--line", "200000", "--lines", "9")
    more = ("--letters", "300", "--max-in-flight-bytes", "1000000")
    found = run("memory", tmp_path, *large, *more)["figures"]
    assert set(found) == {"answers 200000", "lines 200000", "letters 300"}
    assert found["answers 200000"]["most_mib"] > found["answers 200000"]["anon_mib"] > 0
    assert found["letters 300"]["list_mib"] > 0
    assert all(found["letters 300"][step]["most_mib"] > 0 for step in ("published", "answered"))


@pytest.mark.vllm
@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("vllm")
def test_every_way_to_drive_vllm_makes_the_same_tokens(tmp_path: Path) -> None:
    """Daemon, bare client, offline vLLM in two forms and run-batch all do the whole work."""
    plot = tmp_path / "window.png"
    words = ("--requests", "4", "--warm", "2", "--output-mean", "3", "--chunks", "2")
    found = run("engine", tmp_path, *words, "--plot", str(plot))["figures"]
    assert found["failed"] == {}
    ways = ("daemon", "bare client", "LLM.chat", "chunks of 2", "run-batch")
    counts = {(r["requests"], r["output_tokens"]) for way in ways for r in found[way]["runs"]}
    assert len(counts) == 1
    assert found["daemon"]["runs"][0]["course"][0]["window"] > 0
    assert plot.exists() == (importlib.util.find_spec("matplotlib") is not None)


def test_a_workload_is_drawn_from_its_seed_alone() -> None:
    """The same numbers make the same bytes; another seed makes others."""
    drawn = workload.Workload(20, 30, 5, prefixes=2, prefix_words=5)
    assert list(drawn.lines("a")) == list(drawn.lines("a"))
    assert list(drawn.lines("a")) != list(workload.Workload(20, 30, 5, seed=2).lines("a"))


def test_another_tag_gives_other_texts_of_the_same_lengths() -> None:
    """What an engine remembers of one run is of no use to the next, but the work is the same."""
    drawn = workload.Workload(50, 30, 5, prefixes=3, prefix_words=5)
    ours, theirs = ([json.loads(line)["body"] for line in drawn.lines(tag)] for tag in "ab")
    for one, other in zip(ours, theirs, strict=True):
        assert one["max_tokens"] == other["max_tokens"]
        assert len(one["messages"]) == len(other["messages"]) == 2
        for mine, yours in zip(one["messages"], other["messages"], strict=True):
            assert len(mine["content"].split()) == len(yours["content"].split())
            assert mine["content"] != yours["content"]


def test_lengths_follow_the_given_distributions() -> None:
    """Means are near those asked for, and no output is longer than the most."""
    drawn = workload.Workload(4000, 100, 10, output_mean=50, output_max=200)
    bodies = [json.loads(line)["body"] for line in drawn.lines()]
    words = [len(body["messages"][0]["content"].split()) for body in bodies]
    tokens = [body["max_tokens"] for body in bodies]
    assert sum(words) / len(words) == pytest.approx(101, rel=0.02)
    assert sum(tokens) / len(tokens) == pytest.approx(50, rel=0.1)
    assert max(tokens) <= 200


def test_a_given_file_is_sent_under_other_words() -> None:
    """A workload file keeps its requests; only the first words and the model change."""
    given = [*workload.Workload(3, 10, 1).lines(), b"\n"]
    changed = list(workload.retagged(given, "tag", "m"))
    assert len(changed) == 3
    body = json.loads(changed[1])["body"]
    assert body["model"] == "m"
    assert body["messages"][0]["content"].startswith("tag 1 ")


def test_a_model_of_a_shape_is_made_from_the_tokenizer(tmp_path: Path) -> None:
    """The folder holds tokenizer and configuration, and the flags ask for dummy weights."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    made = models.make("8b", tokenizer, tmp_path, [], gpu=True)
    assert json.loads((made.folder / "config.json").read_bytes())["hidden_size"] == 4096
    assert (made.folder / "tokenizer.json").exists()
    assert made.args[:2] == ("--load-format", "dummy")
    assert "--model" in made.words
