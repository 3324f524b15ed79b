"""The model and the flags that an engine benchmark runs with.

Purpose: the demo model as it is, or a model folder of a given shape with dummy weights
and the demo model's tokenizer: speed needs no real weights.
Invariant: every way to drive vLLM gets the same model folder and the same flags.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "bench-model"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
_COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
    "mlp_bias": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
}
DEMO = "demo"
# The flags of the figures in RESULTS.md; on a CPU those of the demo.
_LENGTH = ["--max-model-len", "2048"]
GPU_ARGS = [*_LENGTH, "--max-num-seqs", "512", "--gpu-memory-utilization", "0.85"]
CPU_ARGS = [
    *("--dtype", "float32", "--enforce-eager"),
    *(*_LENGTH, "--max-num-seqs", "64", "--gpu-memory-utilization", "0.5"),
]
_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder, vLLM's flags for it, and its environment."""

    folder: Path
    args: tuple[str, ...]
    env: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The flags, for a command that takes them all."""
        return ["--model", str(self.folder), "--served-model-name", NAME, *self.args]


def demo_folder() -> Path:
    """Where `make model` keeps the demo model."""
    override = os.environ.get("INBOX_DAEMON_DEMO_MODEL")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    default = cache / "inbox-daemon" / "models" / "SmolLM2-135M-Instruct"
    return Path(override).expanduser() if override else default


def make(shape: str, tokenizer: Path, work: Path, args: list[str], *, gpu: bool) -> Model:
    """The model of a shape; `demo` is the folder `tokenizer` itself, weights and all.

    Raises FileNotFoundError: there is no tokenizer in that folder.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        msg = f"there is no tokenizer.json in {tokenizer}; run `make model` or name a folder"
        raise FileNotFoundError(msg)
    flags = args or (GPU_ARGS if gpu else CPU_ARGS)
    env = dict(_QUIET)
    if not gpu:
        env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(_cores())}
    env = {name: value for name, value in env.items() if name not in os.environ}
    if shape == DEMO:
        return Model(tokenizer, tuple(flags), env)
    folder = work / f"model-{shape}"
    folder.mkdir()
    for name in _TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    config = json.dumps(_COMMON | SHAPES[shape], indent=1)
    (folder / "config.json").write_text(config, encoding="utf-8")
    return Model(folder, ("--load-format", "dummy", *flags), env)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
