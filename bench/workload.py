"""Draw a workload: chat requests whose lengths follow given distributions.

Purpose: the same requests from the same numbers, on any machine; and one workload under
as many texts as there are runs, so that no run is helped by what an engine remembers of
the run before.
Invariants: pure but for writing the file; lengths depend on the seed alone, texts on
the seed and the tag; a shared prefix is shared within a tag only.
Units: prompt lengths in words (one word is about 1.1 tokens), output lengths in tokens.

    python -m bench.workload --requests 1000 --out job.jsonl
"""

import argparse
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"
_TEXT = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who "
    "will no more if out so up said what its about than into them can only other time new some "
    "could these two may first then do any like my now over such our man me even most made after "
    "also did many off before must well back through years where much your way down should because "
    "long each just state those people too little good world make very year still see own work men "
    "day get here old life both between being under three never know same last another while us "
    "might great go come since against right came take used himself few house use place during "
    "high without again home around small however found part school general upon every does got "
    "united left number course war until always away something fact water though public less put "
    "think almost hand enough far look head yet government system set told nothing night end called"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Workload:
    """A drawn workload.

    Prompts are normal, `prompt_mean` ± `prompt_sd` words; outputs log-normal with mean
    `output_mean` and `output_sigma`, at most `output_max`; `prefixes` system prompts of
    `prefix_words` words are shared by all requests, in random order; 0 is none.
    """

    requests: int = 1000
    prompt_mean: float = 430
    prompt_sd: float = 60
    prompt_min: int = 4
    output_mean: float = 88
    output_sigma: float = 0.8
    output_max: int = 600
    prefixes: int = 0
    prefix_words: int = 300
    seed: int = 1

    def lines(self, tag: str = "", model: str | None = None) -> Iterator[bytes]:
        """The job's lines, each with its newline; `tag` is one run's, `model` is named if given."""
        lengths = random.Random(self.seed)
        texts = random.Random(f"{self.seed} {tag}")
        shared = [_text(texts, self.prefix_words) for _ in range(self.prefixes)]
        for number in range(self.requests):
            words = max(self.prompt_min, round(lengths.gauss(self.prompt_mean, self.prompt_sd)))
            tokens = self._output(lengths)
            prefix = lengths.randrange(self.prefixes) if shared else 0
            messages = [{"role": "user", "content": f"{tag}{number} {_text(texts, words)}"}]
            if shared:
                messages.insert(0, {"role": "system", "content": f"{tag}{prefix} {shared[prefix]}"})
            yield line(f"r{number}", messages, tokens, model)

    def _output(self, lengths: random.Random) -> int:
        mu = math.log(self.output_mean) - self.output_sigma**2 / 2
        drawn = lengths.lognormvariate(mu, self.output_sigma)
        return max(1, min(self.output_max, round(drawn)))


def line(
    custom_id: str, messages: list[dict[str, str]], tokens: int, model: str | None = None
) -> bytes:
    """One request for exactly so many tokens, whatever the model would say."""
    body: dict[str, Any] = {"model": model} if model else {}
    body |= {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    document = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(document).encode() + b"\n"


def retagged(lines: Iterable[bytes], tag: str, model: str) -> Iterator[bytes]:
    """The requests of a given file with other first words, so that no cache knows them."""
    for given in lines:
        if not given.strip():
            continue
        document: dict[str, Any] = json.loads(given)
        document["body"]["model"] = model
        for message in document["body"].get("messages", [])[:1]:
            if isinstance(message.get("content"), str):
                message["content"] = f"{tag} {message['content']}"
        yield json.dumps(document).encode() + b"\n"


def write(path: Path, lines: Iterable[bytes]) -> Path:
    """Write a job's file."""
    with path.open("wb", buffering=1 << 20) as file:
        file.writelines(lines)
    return path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one option for each number of a workload."""
    for field, default in asdict(Workload()).items():
        kind = type(default)
        parser.add_argument(f"--{field.replace('_', '-')}", type=kind, default=default)


def from_options(chosen: argparse.Namespace) -> Workload:
    """The workload that the options name."""
    return Workload(**{field.name: getattr(chosen, field.name) for field in fields(Workload)})


def _text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(_WORDS, k=words))


def main() -> None:
    """Write a drawn workload into a file."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_options(parser)
    parser.add_argument("--tag", default="", help="another tag gives other texts, same lengths")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    write(chosen.out, from_options(chosen).lines(chosen.tag))


if __name__ == "__main__":
    main()
