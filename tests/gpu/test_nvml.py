"""The card: what is read of it, what it may lack, and how it is found again after it was lost."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from types import ModuleType, SimpleNamespace

import pynvml
import pytest

from inbox_daemon.gpu.nvml import GpuSample, NvmlGpu, main, open_gpu

GIB = 2**30
OURS, THEIRS = 100, 200


class FakeNvml(ModuleType):
    """Stands for pynvml at the level of its functions; `raises` makes one of them fail."""

    def __init__(self) -> None:
        """Begin as a healthy card that we and another process use."""
        super().__init__("pynvml")
        for name in dir(pynvml):
            if name.startswith("NVML"):
                setattr(self, name, getattr(pynvml, name))
        self.nvmlMemory_v2 = pynvml.nvmlMemory_v2
        self.raises: dict[str, int] = {}
        self.calls: list[str] = []
        self.count = 1
        self.computing = [process(OURS, 60 * GIB), process(THEIRS, 10 * GIB)]
        self.drawing: list[SimpleNamespace] = []
        self.reasons = 0
        self.answers: dict[str, Callable[..., object]] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
            "nvmlDeviceGetName": lambda _: "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetComputeRunningProcesses": lambda _: self.computing,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda _: self.drawing,
            "nvmlDeviceGetTemperature": lambda _, sensor: 61 if sensor == 0 else None,
            "nvmlDeviceGetPowerUsage": lambda _: 512_500,
            "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
            "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=97, memory=50),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda _: self.reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: self.reasons,
            "nvmlDeviceGetTotalEnergyConsumption": lambda _: 1_234_567,
        }

    def __getattr__(self, name: str) -> Callable[..., object]:
        """Return one of the functions, counted and made to fail where asked."""
        if name not in self.answers:
            raise AttributeError(name)
        return lambda *arguments: self._call(name, *arguments)

    def _call(self, name: str, *arguments: object) -> object:
        self.calls.append(name)
        if name in self.raises:
            raise pynvml.NVMLError(self.raises[name])
        return self.answers[name](*arguments)

    @staticmethod
    def _memory(_: object, version: int | None = None) -> SimpleNamespace:
        # The first version counts what the driver keeps for itself as used.
        used = 72 * GIB if version else 73 * GIB
        return SimpleNamespace(total=80 * GIB, used=used)

    def fail(self, *names: str, code: int) -> None:
        """Let these functions fail from now on."""
        self.raises.update(dict.fromkeys(names, code))


def process(pid: int, used: int | None) -> SimpleNamespace:
    """Make an entry of NVML's process lists."""
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


@pytest.fixture
def nvml() -> FakeNvml:
    """Return a stand-in for pynvml with one healthy card."""
    return FakeNvml()


@pytest.fixture
def gpu(nvml: FakeNvml) -> NvmlGpu:
    """Return the card behind the stand-in."""
    return NvmlGpu(0, nvml)


def read(gpu: NvmlGpu, *pids: int) -> GpuSample:
    """Take a sample that must be there."""
    sample = gpu.sample(pids)
    assert sample is not None
    return sample


SENSORS = {
    "nvmlDeviceGetTemperature": "temperature_c",
    "nvmlDeviceGetPowerUsage": "power_w",
    "nvmlDeviceGetEnforcedPowerLimit": "power_limit_w",
    "nvmlDeviceGetUtilizationRates": "utilization_percent",
    "nvmlDeviceGetTotalEnergyConsumption": "energy_j",
}


def test_healthy_card_tells_everything(gpu: NvmlGpu) -> None:
    """Every sensor arrives in its unit, and the sample cannot be changed."""
    sample = read(gpu, OURS)
    assert sample == GpuSample(
        name="NVIDIA H100 80GB HBM3",
        memory_used_bytes=72 * GIB,
        memory_total_bytes=80 * GIB,
        memory_percent=90.0,
        others_percent=15.0,
        temperature_c=61,
        power_w=512.5,
        power_limit_w=700.0,
        utilization_percent=97,
        throttle_reasons=(),
        energy_j=1234.567,
        healthy=True,
        problem=None,
    )
    with pytest.raises(FrozenInstanceError):
        sample.healthy = False  # type: ignore[misc]


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, 9])
def test_no_driver_is_normal(nvml: FakeNvml, gpu: NvmlGpu, code: int) -> None:
    """Without a driver there is no sample, and nothing to shut down."""
    nvml.fail("nvmlInit", code=code)
    assert gpu.sample([OURS]) is None
    gpu.close()
    assert "nvmlShutdown" not in nvml.calls


def test_driver_without_a_card_is_normal(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A driver that knows no card gives no sample and is let go of."""
    nvml.count = 0
    assert gpu.sample([]) is None
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown") == 1


def test_card_that_appears_later_is_found(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A driver loaded after the daemon's start is found by a later sample."""
    nvml.fail("nvmlInit", code=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    assert gpu.sample([]) is None
    nvml.raises.clear()
    assert read(gpu).healthy


def test_wrong_index_is_named(nvml: FakeNvml) -> None:
    """An index that no card has is a sentence for the operator."""
    sample = read(NvmlGpu(3, nvml))
    assert not sample.healthy
    assert sample.problem is not None
    assert "gpu.index is 3" in sample.problem


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_UNKNOWN,
    ],
)
@pytest.mark.parametrize("function", SENSORS)
def test_missing_sensor_is_none(nvml: FakeNvml, gpu: NvmlGpu, function: str, code: int) -> None:
    """Whatever a driver says where a sensor is missing, that figure alone is None."""
    nvml.fail(function, code=code)
    sample = read(gpu, OURS)
    assert sample.healthy
    missing = {name for name in SENSORS.values() if getattr(sample, name) is None}
    assert missing == {SENSORS[function]}


def test_card_without_any_sensor_is_healthy(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A card that shares the machine's memory and has no sensor is a card all the same."""
    every = [name for name in nvml.answers if name.startswith("nvmlDeviceGet")]
    silent = set(every) - {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName"}
    nvml.fail(*silent, code=pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert read(gpu, OURS) == GpuSample("NVIDIA H100 80GB HBM3")


def test_function_that_the_driver_lacks_is_a_missing_sensor(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A driver older than the binding, which then raises an error of its own, is fine."""

    def outdated(*_: object) -> None:
        raise pynvml.NVMLLibraryMismatchError("Unversioned function called")

    nvml.answers["nvmlDeviceGetComputeRunningProcesses"] = outdated
    sample = read(gpu, OURS)
    assert sample.healthy
    assert sample.others_percent is None


def test_old_driver_tells_memory_its_way(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """Where the newer memory question is unknown the older one is asked."""

    def first_only(_: object, version: int | None = None) -> SimpleNamespace:
        if version:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return SimpleNamespace(total=80 * GIB, used=73 * GIB)

    nvml.answers["nvmlDeviceGetMemoryInfo"] = first_only
    assert read(gpu).memory_used_bytes == 73 * GIB


# What others use


def test_without_processes_of_ours_all_memory_is_others(gpu: NvmlGpu) -> None:
    """While the engine is down, whatever is used is used by others."""
    assert read(gpu).others_percent == 90.0


def test_several_processes_of_ours_are_summed_once_each(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """Workers count together, and one in both of NVML's lists counts once."""
    nvml.computing = [process(OURS, 30 * GIB), process(OURS + 1, 32 * GIB)]
    nvml.drawing = [process(OURS, 30 * GIB), process(THEIRS, 2 * GIB)]
    assert read(gpu, OURS, OURS + 1).others_percent == 12.5


def test_pids_of_another_namespace_make_the_share_unknown(gpu: NvmlGpu) -> None:
    """Where none of our processes can be seen, the use by others is unknown."""
    assert read(gpu, 7, 8).others_percent is None


def test_process_without_a_figure_makes_the_share_unknown(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A process of ours whose memory the driver does not tell is no process without memory."""
    nvml.computing = [process(OURS, None), process(OURS + 1, GIB)]
    assert read(gpu, OURS, OURS + 1).others_percent is None


def test_figure_missing_for_others_does_not_matter(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """What others use is what is left, so their own figures may be missing."""
    nvml.computing = [process(OURS, 60 * GIB), process(THEIRS, None)]
    assert read(gpu, OURS).others_percent == 15.0


def test_share_is_never_negative(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """Two readings taken one after the other may contradict; the share stays in 0 to 100."""
    nvml.computing = [process(OURS, 79 * GIB)]
    assert read(gpu, OURS).others_percent == 0.0


# Throttling


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (pynvml.nvmlClocksEventReasonGpuIdle, ()),
        (pynvml.nvmlClocksEventReasonSwPowerCap, ("sw_power_cap",)),
        (
            pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown,
            ("hw_slowdown", "hw_thermal"),
        ),
        (pynvml.nvmlClocksEventReasonSwThermalSlowdown, ("sw_thermal",)),
        (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, ("hw_power_brake",)),
        (1 << 40, ()),
    ],
)
def test_throttle_reasons_are_words(
    nvml: FakeNvml, gpu: NvmlGpu, bits: int, words: tuple[str, ...]
) -> None:
    """Each reason has its word; being idle is none, and an unknown bit is ignored."""
    nvml.reasons = bits
    assert read(gpu).throttle_reasons == words


def test_old_driver_is_asked_by_the_older_name(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """Where the question has its older name the reasons are still told."""
    nvml.fail("nvmlDeviceGetCurrentClocksEventReasons", code=13)
    nvml.reasons = 0x20
    assert read(gpu).throttle_reasons == ("sw_thermal",)


# Lost and found


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("nvmlDeviceGetMemoryInfo", pynvml.NVML_ERROR_GPU_IS_LOST),
        ("nvmlDeviceGetMemoryInfo", pynvml.NVML_ERROR_UNKNOWN),
        ("nvmlDeviceGetMemoryInfo", pynvml.NVML_ERROR_UNINITIALIZED),
        ("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_GPU_IS_LOST),
        ("nvmlDeviceGetTemperature", pynvml.NVML_ERROR_RESET_REQUIRED),
        ("nvmlDeviceGetComputeRunningProcesses", pynvml.NVML_ERROR_GPU_IS_LOST),
    ],
)
def test_lost_card_is_sick_and_found_again(
    nvml: FakeNvml, gpu: NvmlGpu, function: str, code: int
) -> None:
    """A card that was lost is reported by name with NVML's words, and found once it is back."""
    assert read(gpu).healthy
    nvml.fail(function, code=code)
    sick = read(gpu, OURS)
    assert not sick.healthy
    assert sick.problem is not None
    assert "NVIDIA H100 80GB HBM3" in sick.problem
    assert str(pynvml.NVMLError(code)) in sick.problem
    assert sick.temperature_c is None
    nvml.raises.clear()
    assert read(gpu).healthy
    assert nvml.calls.count("nvmlInit") == 2
    assert nvml.calls.count("nvmlShutdown") == 1


def test_driver_unloaded_under_a_known_card_is_no_absence(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """Once a card was seen, a missing driver is a fault and not normal, until it is back."""
    read(gpu)
    nvml.fail("nvmlDeviceGetMemoryInfo", "nvmlInit", code=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    for _ in range(3):
        sick = read(gpu)
        assert not sick.healthy
        assert sick.name == "NVIDIA H100 80GB HBM3"
    nvml.raises.clear()
    assert read(gpu).healthy


def test_shutdown_that_fails_too_is_survived(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A sick driver may refuse even to be let go of."""
    read(gpu)
    nvml.fail("nvmlDeviceGetMemoryInfo", "nvmlShutdown", "nvmlInit", code=pynvml.NVML_ERROR_UNKNOWN)
    assert not read(gpu).healthy
    gpu.close()


def test_driver_that_does_not_match_is_a_fault(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """A driver updated without a reboot is reported as that, though no card was seen before."""
    nvml.fail("nvmlInit", code=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    sample = read(gpu)
    assert not sample.healthy
    assert "version mismatch" in str(sample.problem)


def test_handle_that_is_refused_leaves_nothing_open(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """An error between start-up and the handle ends what start-up began."""
    nvml.fail("nvmlDeviceGetHandleByIndex", code=pynvml.NVML_ERROR_NO_PERMISSION)
    assert not read(gpu).healthy
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown") == 1


def test_hanging_driver_is_reported_and_not_waited_for(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """While one sample hangs in the driver the next says so at once."""
    read(gpu)
    entered, released = threading.Event(), threading.Event()

    def hang(_: object) -> int:
        entered.set()
        assert released.wait(60)
        return 1

    nvml.answers["nvmlDeviceGetPowerUsage"] = hang
    hanging = threading.Thread(target=gpu.sample, args=([],))
    hanging.start()
    assert entered.wait(60)
    sick = read(gpu)
    released.set()
    hanging.join()
    assert not sick.healthy
    assert "not answered" in str(sick.problem)
    assert read(gpu).healthy


def test_close_gives_up_on_a_hanging_driver(
    nvml: FakeNvml, gpu: NvmlGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing while the driver hangs leaves it alone instead of hanging too."""
    monkeypatch.setattr("inbox_daemon.gpu.nvml.CLOSE_PATIENCE_S", 0.0)
    read(gpu)
    with gpu._busy:
        gpu.close()
    assert "nvmlShutdown" not in nvml.calls


def test_closed_card_can_be_sampled_again(nvml: FakeNvml, gpu: NvmlGpu) -> None:
    """Closing lets go of NVML once, and a later sample takes it again."""
    gpu.close()
    read(gpu)
    gpu.close()
    gpu.close()
    assert nvml.calls.count("nvmlShutdown") == 1
    assert read(gpu).healthy


# The real thing


def test_real_driver_answers_or_is_absent() -> None:
    """On whatever machine this runs, a sample is a whole one or None."""
    gpu = open_gpu(0)
    try:
        sample = gpu.sample([])
        assert sample is None or sample.name
        assert gpu.sample([]) is None or sample is not None
    finally:
        gpu.close()


def test_module_prints_a_sample() -> None:
    """Run as a module it prints JSON: one sample, or null."""
    printed = subprocess.run(
        [sys.executable, "-m", "inbox_daemon.gpu.nvml"], check=False, capture_output=True, text=True
    )
    document = json.loads(printed.stdout)
    assert printed.returncode == (0 if document is None or document["healthy"] else 1)


def test_sick_card_shows_in_the_exit_status(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script can tell a sick card by the exit status and read why."""
    monkeypatch.setattr("inbox_daemon.gpu.nvml.open_gpu", lambda index: NvmlGpu(index, nvml))
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out)["memory_percent"] == 90.0
    assert main(["5"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False
