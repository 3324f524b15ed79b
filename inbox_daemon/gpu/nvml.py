"""What the graphics card says of itself: the only import of pynvml.

Purpose: one sample of one NVIDIA card's sensors.
Invariants: `sample` never raises and never waits for an earlier sample.  No driver or
no card is normal and gives None; a sensor that the card lacks is None; a card that was
there and cannot be read gives a sample with `healthy` False and a sentence, and the
next sample restarts NVML, so that a reloaded driver is found again.
Known limits: a call into a sick driver may block for minutes, so `sample` belongs in a
thread.  Inside a process namespace NVML names other pids than ours: then it is not
known what others use.  Memory of a process under MPS is shown as its server's.
Run as `python -m inbox_daemon.gpu [INDEX]` it prints one sample as JSON.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Protocol

# The bits of nvmlDeviceGetCurrentClocksEventReasons, from nvml.h ("nvmlClocksEventReasons"),
# as words for the status that no release of NVML may rename.  Bit 0, idle, is no throttling.
THROTTLE_REASONS = {
    0x002: "application_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}

CLOSE_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of the card.

    `others_percent` is the share of the total memory that processes other than ours
    use, 0 to 100.  `energy_j` counts since the driver was loaded.  None: the card, the
    driver or the namespace does not tell.
    """

    name: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_percent: float | None = None
    others_percent: float | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    utilization_percent: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    energy_j: float | None = None
    healthy: bool = True
    problem: str | None = None


class Gpu(Protocol):
    """A card, or the place where one might be."""

    def sample(self, our_pids: Collection[int]) -> GpuSample | None:
        """Read the card once; None when this machine has none.  May block: use a thread."""

    def close(self) -> None:
        """Let go of the driver; a later sample takes it again."""


def open_gpu(index: int) -> Gpu:
    """Return the card with that NVML index; nothing is asked of it yet."""
    return NvmlGpu(index)


class _NoGpuError(Exception):
    """This machine has no NVIDIA card, or no driver for one."""


class _MissingIndexError(Exception):
    """This machine has cards, but not the one that was asked for."""


class NvmlGpu:
    """A card read through NVML."""

    def __init__(self, index: int, nvml: ModuleType | None = None) -> None:
        """Take the NVML index, and for tests something with pynvml's functions."""
        self._index = index
        self._nvml = nvml
        self._handle: object = None
        self._name: str | None = None
        self._busy = threading.Lock()

    def sample(self, our_pids: Collection[int]) -> GpuSample | None:
        """Read the card once; `our_pids` are the engine's processes, none if it is down.

        Returns None when there is no card, and never raises.
        """
        if not self._busy.acquire(blocking=False):
            return self._sick("the driver has not answered the last question yet")
        try:
            if self._nvml is None:
                import pynvml  # noqa: PLC0415 - most of start-up's imports, and often for nothing

                self._nvml = pynvml
            nvml = self._nvml
            try:
                self._open(nvml)
                return _Card(nvml, self._handle).read(self._name or "", frozenset(our_pids))
            except _NoGpuError:
                return None if self._name is None else self._sick("it is gone from this machine")
            except _MissingIndexError as error:
                return self._sick(str(error))
            except nvml.NVMLError as error:
                self._reset()
                return self._sick(f"NVML says: {error}")
        finally:
            self._busy.release()

    def close(self) -> None:
        """Let go of NVML, unless the driver hangs in a call."""
        if not self._busy.acquire(timeout=CLOSE_PATIENCE_S):
            return
        try:
            self._reset()
        finally:
            self._busy.release()

    def _open(self, nvml: ModuleType) -> None:
        if self._handle is not None:
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if error.value in {
                nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
                nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            }:
                raise _NoGpuError from None
            raise
        try:
            self._handle = _find(nvml, self._index)
            name = nvml.nvmlDeviceGetName(self._handle)  # bytes, in older releases of pynvml
            self._name = name.decode(errors="replace") if isinstance(name, bytes) else name
        except BaseException:
            self._reset(initialised=True)
            raise

    def _reset(self, *, initialised: bool = False) -> None:
        """Forget the card, so that the next sample restarts NVML."""
        if self._nvml is not None and (self._handle is not None or initialised):
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._handle = None

    def _sick(self, what: str) -> GpuSample:
        name = self._name or f"GPU {self._index}"
        return GpuSample(name, healthy=False, problem=f"{name} cannot be used: {what}")


def _find(nvml: ModuleType, index: int) -> object:
    count = nvml.nvmlDeviceGetCount()
    if count == 0:
        raise _NoGpuError
    if index >= count:
        raise _MissingIndexError(f"gpu.index is {index}, and this machine has {count} GPU(s)")
    return nvml.nvmlDeviceGetHandleByIndex(index)


class _Card:
    """The questions to one card that is open; each raises NVMLError if the card is lost."""

    def __init__(self, nvml: ModuleType, handle: object) -> None:
        self._nvml = nvml
        self._handle = handle

    def read(self, name: str, our_pids: frozenset[int]) -> GpuSample:
        used, total = self._memory()
        computing = self._ask("nvmlDeviceGetComputeRunningProcesses") or []
        drawing = self._ask("nvmlDeviceGetGraphicsRunningProcesses") or []
        # A process that computes and draws is in both lists, with one figure.
        held = {one.pid: one.usedGpuMemory for one in (*drawing, *computing) if one.pid in our_pids}
        known: list[int] = [figure for figure in held.values() if figure is not None]
        ours = None if len(known) < len(held) or (our_pids and not held) else sum(known)
        utilization = self._ask("nvmlDeviceGetUtilizationRates")
        temperature = self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)
        power = self._ask("nvmlDeviceGetPowerUsage")
        power_limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        throttle_bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if throttle_bits is None:  # drivers before 535 know it by its older name
            throttle_bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return GpuSample(
            name=name,
            memory_used_bytes=used,
            memory_total_bytes=total,
            memory_percent=_percent(used, total),
            others_percent=None if used is None or ours is None else _percent(used - ours, total),
            temperature_c=temperature,
            power_w=_thousandth(power),
            power_limit_w=_thousandth(power_limit),
            utilization_percent=None if utilization is None else utilization.gpu,
            throttle_reasons=tuple(
                word for bit, word in THROTTLE_REASONS.items() if throttle_bits & bit
            ),
            energy_j=_thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption")),
        )

    def _ask(self, function: str, *arguments: object) -> Any:  # noqa: ANN401 - NVML is untyped
        """Return the answer, or None where the card has none.

        Drivers answer with half a dozen codes where they mean that a sensor is missing,
        so each error means it that is not known to mean more.
        """
        nvml = self._nvml
        try:
            return getattr(nvml, function)(self._handle, *arguments)
        except nvml.NVMLLibraryMismatchError:  # a driver older than the function
            return None
        except nvml.NVMLError as error:
            if error.value in {
                nvml.NVML_ERROR_UNINITIALIZED,
                nvml.NVML_ERROR_DRIVER_NOT_LOADED,
                nvml.NVML_ERROR_GPU_IS_LOST,
                nvml.NVML_ERROR_RESET_REQUIRED,
                nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            }:
                raise
            return None

    def _memory(self) -> tuple[int | None, int | None]:
        """Return bytes used and in all; the one question that every card must answer.

        Cards that share the machine's memory say that they do not support it; any
        other error, an unknown one too, means that the card is lost.
        """
        nvml = self._nvml
        # The second version leaves out what the driver keeps for itself, which on a
        # small card is several per cent, and would be counted as another program's.
        for version in (nvml.nvmlMemory_v2, None):
            try:
                info = nvml.nvmlDeviceGetMemoryInfo(self._handle, version)
            except nvml.NVMLError as error:
                if error.value not in {
                    nvml.NVML_ERROR_NOT_SUPPORTED,
                    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                    nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
                    nvml.NVML_ERROR_INVALID_ARGUMENT,
                }:
                    raise
            else:
                return info.used, info.total
        return None, None


def _percent(part: int | None, whole: int | None) -> float | None:
    if part is None or not whole:
        return None
    return round(max(0.0, min(100.0, 100 * part / whole)), 2)


def _thousandth(figure: int | None) -> float | None:
    return None if figure is None else figure / 1000


def main(arguments: list[str]) -> int:
    """Print one sample as JSON, null where there is no card; exit 1 if it is sick."""
    gpu = open_gpu(int(arguments[0]) if arguments else 0)
    sample = gpu.sample(())
    gpu.close()
    sys.stdout.write(json.dumps(sample and asdict(sample), indent=2) + "\n")
    return 0 if sample is None or sample.healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
