"""A graphics card for a real daemon process: NVML and vLLM as the daemon finds them, scripted.

Purpose: put a stand-in for pynvml, and one for vLLM's server, before the real ones on the path
of modules, so that a test decides what the card says while the daemon runs.
Invariants: nothing of the daemon is changed but how often it looks at the card.
"""

import json
import os
from pathlib import Path
from typing import Any

STANDIN = Path(__file__).with_name("standin.py")
LIBRARY_NOT_FOUND, NOT_SUPPORTED, DRIVER_NOT_LOADED, GPU_IS_LOST = 12, 3, 9, 15

_NVML = """
import json, os, time
from pathlib import Path
from types import SimpleNamespace
import inbox_daemon.service.worker

inbox_daemon.service.worker.GPU_TICK_S = 0.05
_STATE = Path(__file__).with_name("card.json")
NVML_TEMPERATURE_GPU = 0
NVML_ERROR_UNINITIALIZED, NVML_ERROR_INVALID_ARGUMENT, NVML_ERROR_NOT_SUPPORTED = 1, 2, 3
NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND = 9, 12
NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED = 13, 15, 16
NVML_ERROR_LIB_RM_VERSION_MISMATCH, NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 18, 25
nvmlMemory_v2 = 1

class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(f"error {value}")
        self.value = value

class NVMLLibraryMismatchError(Exception):
    pass

_ANSWERS = {
    "nvmlInit": lambda state: None,
    "nvmlShutdown": lambda state: None,
    "nvmlDeviceGetCount": lambda state: 1,
    "nvmlDeviceGetHandleByIndex": lambda state, index: "handle",
    "nvmlDeviceGetName": lambda state, handle: "Scripted GPU",
    "nvmlDeviceGetMemoryInfo": lambda state, handle, version=None: SimpleNamespace(
        used=2**30, total=2**34
    ),
    "nvmlDeviceGetComputeRunningProcesses": lambda state, handle: [],
    "nvmlDeviceGetGraphicsRunningProcesses": lambda state, handle: [],
    "nvmlDeviceGetTemperature": lambda state, handle, sensor: state["temperature_c"],
    "nvmlDeviceGetPowerUsage": lambda state, handle: state["power_w"] * 1000,
    "nvmlDeviceGetEnforcedPowerLimit": lambda state, handle: 450_000,
    "nvmlDeviceGetUtilizationRates": lambda state, handle: SimpleNamespace(gpu=50, memory=5),
    "nvmlDeviceGetCurrentClocksEventReasons": lambda state, handle: state["reasons"],
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda state, handle: state["reasons"],
    "nvmlDeviceGetTotalEnergyConsumption": lambda state, handle: int(
        state["power_w"] * 1000 * time.monotonic()
    ),
}

def _call(name, *arguments):
    state = json.loads(_STATE.read_bytes())
    code = state["fail"].get(name, state["fail"].get("*"))
    if code is not None:
        raise NVMLError(code)
    return _ANSWERS[name](state, *arguments)

def __getattr__(name):
    if name not in _ANSWERS:
        raise AttributeError(name)
    return lambda *arguments: _call(name, *arguments)
"""

_VLLM = """
import os, sys
words = dict(zip(sys.argv[1:], sys.argv[2:]))
command = [sys.executable, {standin!r}, "--socket", words["--uds"], *{options!r}]
os.execv(sys.executable, [*command, "--model", words["--served-model-name"]])
"""


class ScriptedCard:
    """The card of the daemons that are started with `path` as their PYTHONPATH."""

    def __init__(self, folder: Path) -> None:
        """A cool card that uses 100 W."""
        self._folder = folder / "modules"
        self._folder.mkdir()
        self._state: dict[str, Any] = {
            "temperature_c": 60,
            "power_w": 100,
            "reasons": 0,
            "fail": {},
        }
        self.set()
        (self._folder / "pynvml.py").write_text(_NVML, encoding="utf-8")
        before = os.environ.get("PYTHONPATH")
        self.path = os.pathsep.join([str(self._folder), *([before] if before else [])])

    def set(self, **changed: object) -> None:
        """Change what the card says, in one piece; `fail` maps functions, or *, to codes."""
        self._state |= changed
        hidden = self._folder / "card.json.part"
        hidden.write_text(json.dumps(self._state), encoding="utf-8")
        hidden.rename(self._folder / "card.json")

    def serve(self, *options: str) -> None:
        """Let `[engine] model` start a stand-in with these options as vLLM's server."""
        package = self._folder / "vllm" / "entrypoints" / "openai"
        package.mkdir(parents=True)
        for folder in (package, package.parent, package.parent.parent):
            (folder / "__init__.py").touch()
        code = _VLLM.format(standin=str(STANDIN), options=options)
        (package / "api_server.py").write_text(code, encoding="utf-8")
