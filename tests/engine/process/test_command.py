"""The command line and environment that are started."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

from inbox_daemon.contract.config import Config
from inbox_daemon.engine.process.command import chooses_rust, custom_launch, vllm_launch

SOCKET = Path("/run/inbox/engine.sock")


def config(**engine: object) -> Config:
    """Make a configuration with this [engine]."""
    return Config.model_validate(
        {"engine": {"model": "/models/Tiny-1B", **engine}, "gpu": {"index": 2}}
    )


def test_vllm_listens_on_the_socket_and_leaves_the_desktop_its_share() -> None:
    """The Python front end gets the model, its name, the socket and a bounded share of memory."""
    launch = vllm_launch(config(), SOCKET, {}, rust=False)
    assert launch.argv == (
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "/models/Tiny-1B", "--disable-uvicorn-access-log"),
        *("--uds", "/run/inbox/engine.sock", "--served-model-name", "Tiny-1B"),
        *("--gpu-memory-utilization", "0.85"),
    )


def test_hosts_of_media_are_passed_on() -> None:
    """The engine gets the hosts that may be fetched from, unless the operator's args have them."""
    body = {"limits": {"body": {"media_domains": ["a.example", "b.example"]}}}
    chosen = Config.model_validate({"engine": {"model": "m"}, **body})
    argv = vllm_launch(chosen, SOCKET, {}, rust=False).argv
    assert argv[-3:] == ("--allowed-media-domains", "a.example", "b.example")
    args = ["--allowed_media_domains", "c.example"]
    chosen = Config.model_validate({"engine": {"model": "m", "args": args}, **body})
    assert vllm_launch(chosen, SOCKET, {}, rust=False).argv[-2:] == tuple(args)


def test_media_are_not_fetched_by_way_of_another_host() -> None:
    """Redirects to unlisted hosts are off, unless the operator allows them."""
    name = "VLLM_MEDIA_URL_ALLOW_REDIRECTS"
    assert vllm_launch(config(), SOCKET, {}, rust=False).env[name] == "0"
    assert vllm_launch(config(env={name: "1"}), SOCKET, {}, rust=False).env[name] == "1"


def test_the_operators_arguments_come_last_and_replace_ours() -> None:
    """A memory share or a name in args, in any spelling of vLLM's, replaces ours."""
    args = ["--gpu_memory_utilization=0.5", "--served-model-name", "other", "--dtype", "float32"]
    argv = vllm_launch(config(args=args), SOCKET, {}, rust=False).argv
    assert argv[-5:] == tuple(args)
    assert "0.85" not in argv
    assert "Tiny-1B" not in argv


def test_the_rust_front_end_is_vllm_serve_with_its_variable() -> None:
    """The other form is the serve command, which alone reads the variable."""
    launch = vllm_launch(config(), SOCKET, {}, rust=True)
    words = ("-m", "vllm.entrypoints.cli.main", "serve", "/models/Tiny-1B")
    assert launch.argv[1:5] == words
    assert "--disable-uvicorn-access-log" not in launch.argv
    assert launch.env["VLLM_USE_RUST_FRONTEND"] == "1"


def test_the_operators_variable_chooses_the_front_end() -> None:
    """Set to 1 by hand the variable gives the serve command, set to 0 the other."""
    for value, entry in (
        ("1", "vllm.entrypoints.cli.main"),
        ("0", "vllm.entrypoints.openai.api_server"),
    ):
        chosen = config(env={"VLLM_USE_RUST_FRONTEND": value})
        launch = vllm_launch(chosen, SOCKET, {}, rust=False)
        assert launch.argv[2] == entry
        assert launch.env["VLLM_USE_RUST_FRONTEND"] == value


def test_the_environment_is_quiet_and_local_unless_set() -> None:
    """Defaults keep vLLM off the network; the daemon's environment and [engine.env] win."""
    chosen = config(env={"DO_NOT_TRACK": "0"})
    env = vllm_launch(chosen, SOCKET, {"VLLM_HOST_IP": "10.0.0.1", "HOME": "/h"}, rust=False).env
    assert env["VLLM_NO_USAGE_STATS"] == "1"
    assert (env["VLLM_HOST_IP"], env["DO_NOT_TRACK"], env["HOME"]) == ("10.0.0.1", "0", "/h")


def test_the_child_cannot_speak_for_the_daemon() -> None:
    """Systemd's socket and the daemon's settings are not in the child's environment."""
    environ = {
        "NOTIFY_SOCKET": "/s",
        "WATCHDOG_USEC": "1",
        "INBOX_DAEMON_SPOOL": "/x",
        "PATH": "/b",
    }
    env = custom_launch(config(command=["x"]).engine, SOCKET, environ).env
    assert env == {"PYTHONUNBUFFERED": "1", "PATH": "/b"}


@pytest.mark.parametrize(
    ("engine", "environ", "shown"),
    [
        ({}, {}, "2"),
        ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "3"}}, {}, "3"),
        ({"args": ["--tensor-parallel-size", "2"]}, {}, None),
        ({"args": ["-tp=2"]}, {}, None),
    ],
    ids=["ours", "environment", "engine-env", "parallel", "parallel-short"],
)
def test_vllm_sees_the_card_of_the_configuration(
    engine: dict[str, object], environ: dict[str, str], shown: str | None
) -> None:
    """One card is shown by NVML's number, unless the operator says otherwise or wants several."""
    env = vllm_launch(config(**engine), SOCKET, environ, rust=False).env
    assert env.get("CUDA_VISIBLE_DEVICES") == shown


def test_a_command_of_the_operator_gets_socket_and_model_in_each_word() -> None:
    """Both names are replaced wherever they stand, and other braces are left."""
    command = ["llama-server", "--host={socket}", "-m", "{model}", '{"a": 1}']
    launch = custom_launch(config(command=command).engine, SOCKET, {})
    assert launch.argv == (
        *("llama-server", "--host=/run/inbox/engine.sock", "-m", "/models/Tiny-1B", '{"a": 1}'),
    )


@pytest.fixture
def vllm_with_rust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Act as if a vLLM with the Rust front end were installed; return its program."""
    program = tmp_path / "vllm-rs"
    program.touch()
    spec = importlib.machinery.ModuleSpec("vllm", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    return program


def test_the_rust_front_end_is_chosen_where_it_is_installed(vllm_with_rust: Path) -> None:
    """The program in vLLM's folder decides; without it the Python front end serves."""
    assert chooses_rust(config(), {})
    vllm_with_rust.unlink()
    assert not chooses_rust(config(), {})


@pytest.mark.usefixtures("vllm_with_rust")
@pytest.mark.parametrize(
    ("engine", "environ"),
    [
        ({}, {"VLLM_USE_RUST_FRONTEND": "0"}),
        ({"env": {"VLLM_USE_RUST_FRONTEND": "1"}}, {}),
        ({"args": ["--runner", "pooling"]}, {}),
        ({"args": ["--convert=embed"]}, {}),
    ],
    ids=["environment", "engine-env", "pooling", "embedding"],
)
def test_the_front_end_is_not_chosen_against_the_operator(
    engine: dict[str, object], environ: dict[str, str]
) -> None:
    """The operator's variable decides, and a pooling model gets the Python front end."""
    assert not chooses_rust(config(**engine), environ)


@pytest.mark.usefixtures("vllm_with_rust")
def test_the_front_end_is_not_chosen_where_media_are_fetched() -> None:
    """With media hosts listed, the Python front end serves, which keeps to them."""
    body = {"media_domains": ["a.example"]}
    chosen = Config.model_validate({"engine": {"model": "m"}, "limits": {"body": body}})
    assert not chooses_rust(chosen, {})


def test_no_vllm_means_no_rust_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If vLLM is missing, the choice raises no error."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert not chooses_rust(config(), {})
