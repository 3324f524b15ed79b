"""The governor: what the card, the engine's kind and the runner's word allow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import config, job_record, make_spool, request
from inbox_daemon.engine.base import EngineKind, Load, NoReply, Reply, Room
from inbox_daemon.engine.window import DEFAULT_WINDOW
from inbox_daemon.gpu.governor import MIN_WINDOW, STEADY_READINGS, Change, Governor
from inbox_daemon.gpu.heat import CALM_READINGS, GovernorState
from inbox_daemon.gpu.nvml import THROTTLE_REASONS, GpuSample
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.run import runner as runner_module
from inbox_daemon.run.runner import Runner
from inbox_daemon.service.parts import assemble
from inert_engine import InertEngine, NoCard

VLLM: dict[str, Any] = {"engine": {"model": "/models/one"}}
COMMAND: dict[str, Any] = {"engine": {"model": "one", "command": ["serve", "{socket}"]}}
ENDPOINT: dict[str, Any] = {"endpoint": {"url": "http://gpu-box:8000"}} | VLLM
CHILDREN = {"vllm": VLLM, "command": COMMAND}
NOT_OURS_TO_JUDGE = {"command": COMMAND, "endpoint": ENDPOINT, "nothing": {}}

HEALTHY = GpuSample("card", others_percent=10, temperature_c=60)
SILENT = GpuSample("card", healthy=False, problem="card cannot be used: it is gone")


def governor(sections: dict[str, Any]) -> Governor:
    """A governor of a daemon with that configuration."""
    settings = config(**sections)
    owned = not settings.endpoint.url
    vllm = owned and not settings.engine.command and bool(settings.engine.model)
    return Governor(settings, EngineKind(owned=owned, computes_here=vllm))


def read(governed: Governor, *samples: GpuSample | None) -> list[bool]:
    """Let a governor read the card, and return whether it was closed after each reading."""
    closed = []
    for sample in samples:
        governed.read_gpu(sample)
        closed.append(governed.closed)
    return closed


# The card


def test_card_that_stops_answering_holds_everything_until_it_answers() -> None:
    """A vLLM of ours is sent nothing while its card is silent, and the reason says so."""
    governed = governor(VLLM)
    assert read(governed, HEALTHY, SILENT, SILENT) == [False, True, True]
    assert governed.window == 0
    assert "it is gone): nothing is sent until it does" in (governed.reason or "")
    assert read(governed, *[HEALTHY] * STEADY_READINGS) == [True] * (STEADY_READINGS - 1) + [False]
    assert governed.window == DEFAULT_WINDOW
    assert governed.reason is None


def test_card_that_comes_and_goes_stays_closed() -> None:
    """Where every other reading fails nothing is sent, and that is reported once."""
    governed = governor(VLLM)
    governed.read_gpu(HEALTHY)
    changes = [governed.read_gpu(sample) for sample in [SILENT, HEALTHY, HEALTHY] * 20]
    assert governed.closed
    assert [change is not None for change in changes] == [True] + [False] * 59


@pytest.mark.parametrize("kind", NOT_OURS_TO_JUDGE)
def test_silent_card_holds_no_engine_that_may_not_use_it(kind: str) -> None:
    """A server elsewhere or a command of the operator's goes on without this machine's card."""
    governed = governor(NOT_OURS_TO_JUDGE[kind])
    assert read(governed, HEALTHY, SILENT) == [False, False]
    assert governed.reason is None


def test_card_that_never_answered_holds_nothing() -> None:
    """Where NVML cannot be asked from the start, the engine alone shows whether it works."""
    assert read(governor(VLLM), SILENT, SILENT) == [False, False]


def test_no_card_is_normal() -> None:
    """A machine without a card holds nothing back, with the largest chunks."""
    governed = governor(VLLM)
    assert read(governed, None) == [False]
    assert (governed.window, governed.chunk_size, governed.reason) == (DEFAULT_WINDOW, 5000, None)


def test_hot_card_that_does_not_answer_is_still_hot_when_it_does() -> None:
    """Silence is no cooling: closed for heat, it opens only below the temperature for that."""
    governed = governor(VLLM)
    hot, warm = GpuSample("card", temperature_c=90), GpuSample("card", temperature_c=78)
    steady = [HEALTHY] * STEADY_READINGS
    assert read(governed, hot, SILENT, *[warm] * 9, *steady) == [True] * 11 + [False] * 3


@pytest.mark.parametrize("kind", CHILDREN)
def test_memory_that_others_use_makes_chunks_small(kind: str) -> None:
    """With an engine of ours it is known which memory is its own."""
    governed = governor(CHILDREN[kind])
    read(governed, GpuSample("card", others_percent=85))
    assert governed.chunk_size == 1000


def test_memory_of_another_server_does_not_shrink_chunks() -> None:
    """The server behind an endpoint may hold the whole card: that is what it is there for."""
    governed = governor(ENDPOINT)
    read(governed, GpuSample("card", others_percent=95))
    assert governed.chunk_size == 5000


def test_sick_card_gives_others_no_memory_back() -> None:
    """A reading that failed says nothing of memory, so chunks stay as small as they were."""
    governed = governor(COMMAND)
    read(governed, GpuSample("card", others_percent=85), SILENT)
    assert (governed.chunk_size, governed.state) == (1000, GovernorState.WARN)
    assert governed.reasons == ["others use 85 % of the GPU's memory: a chunk holds 1000 requests"]


@pytest.mark.parametrize("reason", ["hw_thermal", "sw_thermal", "hw_power_brake"])
def test_throttling_for_heat_or_supply_shrinks_the_window(reason: str) -> None:
    """Half of the window is used, the reason is given, and the card has time to recover."""
    governed = governor(VLLM)
    throttled = replace(HEALTHY, throttle_reasons=("sw_power_cap", reason))
    change = governed.read_gpu(throttled)
    assert governed.window == DEFAULT_WINDOW // 2
    assert change is not None
    assert (change.before, change.state) == (GovernorState.OPEN, GovernorState.SHRINK)
    assert "the GPU slows itself down for" in change.reason
    calm = [governed.read_gpu(HEALTHY) for _ in range(CALM_READINGS)]
    assert calm[:-1] == [None] * (CALM_READINGS - 1)
    assert calm[-1] == Change(
        GovernorState.OPEN, GovernorState.SHRINK, "all of the window is used", 5000
    )
    assert (governed.window, governed.reason) == (DEFAULT_WINDOW, None)


@pytest.mark.parametrize("reason", ["sw_power_cap", "hw_slowdown", "application_clocks"])
def test_power_cap_is_how_a_card_runs_at_its_limit(reason: str) -> None:
    """What does not ask for less work holds nothing back and is no reason for anything."""
    governed = governor(VLLM)
    assert governed.read_gpu(replace(HEALTHY, throttle_reasons=(reason,))) is None
    assert (governed.window, governed.state, governed.reasons) == (
        DEFAULT_WINDOW,
        GovernorState.OPEN,
        [],
    )


def test_each_change_is_reported_once_with_its_reason() -> None:
    """From warm over hot to cool there is one change each, however many readings it takes."""
    governed = governor(VLLM)
    course = [60, 70, 82, 83, 84, 88, 89, 80, 76, 74, 60]
    changes = [governed.read_gpu(replace(HEALTHY, temperature_c=celsius)) for celsius in course]
    told = [change for change in changes if change is not None]
    assert [change.state for change in told] == [
        GovernorState.SHRINK,
        GovernorState.CLOSED,
        GovernorState.OPEN,
    ]
    assert [change.before for change in told] == [
        GovernorState.OPEN,
        GovernorState.SHRINK,
        GovernorState.CLOSED,
    ]
    words = [change.reason.partition(":")[0] for change in told]
    assert words[:2] == [
        "the GPU is at 82 °C, and above 80 °C it is spared",
        "the GPU is at 88 °C",
    ]


def test_chunks_and_heat_are_both_told() -> None:
    """Each of two reasons is a sentence of its own."""
    governed = governor(VLLM)
    change = governed.read_gpu(GpuSample("card", others_percent=95, temperature_c=84))
    assert change is not None
    assert (change.state, change.chunk_size) == (GovernorState.SHRINK, 500)
    assert len(governed.reasons) == 2
    assert change.reason == "; ".join(governed.reasons)


samples = st.builds(
    GpuSample,
    name=st.just("card"),
    others_percent=st.none() | st.floats(0, 100),
    temperature_c=st.none() | st.integers(0, 110),
    throttle_reasons=st.lists(st.sampled_from(sorted(THROTTLE_REASONS.values()))).map(tuple),
    healthy=st.booleans(),
)


@given(st.lists(st.none() | samples, max_size=60), st.sampled_from([VLLM, COMMAND, ENDPOINT]))
def test_what_is_not_open_has_a_reason_and_changes_are_reported(
    course: list[GpuSample | None], sections: dict[str, Any]
) -> None:
    """Whatever is read, state and reasons agree, and the last change names the state."""
    governed = governor(sections)
    state = GovernorState.OPEN
    for sample in course:
        change = governed.read_gpu(sample)
        assert (governed.state is GovernorState.OPEN) == (not governed.reasons)
        assert governed.closed == (governed.state is GovernorState.CLOSED)
        if change is None:
            assert governed.state is state
        else:
            assert change.before is state
            assert change.state is governed.state
            assert change.reason
        state = governed.state


@given(
    st.lists(
        st.tuples(st.sampled_from([79, 80, 81]), st.sampled_from([69.9, 70.1]), st.booleans()),
        min_size=1,
        max_size=200,
    )
)
def test_card_that_hovers_at_every_border_does_not_flap(
    course: list[tuple[int, float, bool]],
) -> None:
    """Around warning, chunk border and power brake, each is taken once and not given back."""
    governed = governor(VLLM)
    changes = 0
    for celsius, others, braked in course:
        reasons = ("hw_power_brake",) if braked else ()
        sample = GpuSample(
            "card", others_percent=others, temperature_c=celsius, throttle_reasons=reasons
        )
        changes += governed.read_gpu(sample) is not None
    # Warm, crowded and braked each begin once; only a brake that rests long enough ends.
    assert changes <= 3 + 2 * (len(course) // CALM_READINGS)


# The window


def test_window_that_is_the_limit_grows_whatever_the_sample_shows() -> None:
    """The runner's word counts, and without it a window that is not full stays."""
    told, untold = governor(VLLM), governor(VLLM)
    told.read_engine(Load(100, 0), 100, 40, 1.0, limited=True)
    untold.read_engine(Load(100, 0), 100, 40, 1.0, limited=False)
    assert told.window > DEFAULT_WINDOW
    assert untold.window == DEFAULT_WINDOW


def test_window_cut_for_heat_does_not_grow_meanwhile() -> None:
    """What heat keeps back is not the window's limit: once cool, it is what it was."""
    governed = governor(VLLM)
    read(governed, GpuSample("card", temperature_c=84))
    cut = governed.window
    assert MIN_WINDOW <= cut < DEFAULT_WINDOW
    for second in range(20):
        governed.read_engine(Load(cut, 0), cut, 10, float(second), limited=True)
    read(governed, HEALTHY)
    assert governed.window == DEFAULT_WINDOW


def test_idle_night_beside_other_clients_keeps_the_window() -> None:
    """A server that others fill while we send nothing leaves the next job its window."""
    governed = governor(ENDPOINT)
    for second in range(1000):
        governed.read_engine(Load(512, 500), 0, 0, float(second), limited=False)
    assert governed.window == DEFAULT_WINDOW


# The runner's word, and its obedience


class Answering(InertEngine):
    """An engine in memory that answers the requests it holds when a test asks it to."""

    def __init__(self) -> None:
        """Begin ready and with nothing in flight."""
        super().__init__("one")
        self.held: list[asyncio.Future[None]] = []

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Hold a request until `answer`."""
        self.held.append(asyncio.get_running_loop().create_future())
        await self.held[-1]
        return Reply(200, b"{}", request_id)

    def answer(self, count: int) -> None:
        """Answer so many of those that have waited longest."""
        for _ in range(count):
            self.held.pop(0).set_result(None)


async def wait_for(waiting: Coroutine[Any, Any, Any], timeout: float) -> object:  # noqa: ASYNC109 - as asyncio's
    """Wait as asyncio.wait_for does from Python 3.12 on: without a task of its own."""
    async with asyncio.timeout(timeout):
        return await waiting


async def settle(engine: Answering, held: int) -> None:
    """Let the loop turn until this many requests are with the engine, or clearly never will be."""
    for _ in range(2000):
        if len(engine.held) == held:
            break
        await asyncio.sleep(0.001)
    assert len(engine.held) == held


def start(root: Path, requests: int, engine: Answering, governed: Governor) -> Runner:
    """A runner over a job that is running, on a real spool and ledger."""
    spool = make_spool(root)
    ledger = Ledger(spool.ledger)
    jobs = ActiveJobs(ledger)
    record = job_record(requests=requests)
    path = spool.input_path(record.id)
    path.parent.mkdir()
    path.write_bytes(b"".join(request(str(number)) + b"\n" for number in range(requests)))
    jobs.add(record, RunningJob(record, spool, ledger))
    parts = assemble(
        config(**VLLM), spool, ledger, jobs, lambda _: engine, lambda _: governed, NoCard()
    )
    return parts.runner


@contextlib.asynccontextmanager
async def turning(runner: Runner) -> AsyncIterator[None]:
    """Let a runner's loop turn meanwhile."""
    loop = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.wait({loop})
        await runner.drain(0)


@pytest.mark.parametrize("waits", [asyncio.wait_for, wait_for], ids=["as here", "as from 3.12 on"])
async def test_place_of_an_answered_request_is_filled_in_the_same_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: object
) -> None:
    """Whatever way the loop is woken, what woke it no longer takes a place in the window."""
    engine, governed = Answering(), governor(VLLM)
    runner = start(tmp_path, 2 * DEFAULT_WINDOW, engine, governed)
    monkeypatch.setattr(asyncio, "wait_for", waits)
    monkeypatch.setattr(runner_module, "LONGEST_WAIT_S", 60.0)
    async with turning(runner):
        await settle(engine, DEFAULT_WINDOW)
        for count in (1, 7, 1):
            engine.answer(count)
            await settle(engine, DEFAULT_WINDOW)


async def test_runner_says_whether_the_window_keeps_requests_back(tmp_path: Path) -> None:
    """It is the limit while there is more to send, and not once all is sent."""
    engine, governed = Answering(), governor(VLLM)
    runner = start(tmp_path, DEFAULT_WINDOW + 3, engine, governed)
    words = []
    async with turning(runner):
        await settle(engine, DEFAULT_WINDOW)
        words.append(runner.limited)
        engine.answer(3)
        await settle(engine, DEFAULT_WINDOW)
        words.append(runner.limited)
    assert words == [True, False]
