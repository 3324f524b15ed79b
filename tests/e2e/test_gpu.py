"""A card that is hot, lost, without sensors or absent: jobs wait or run, and none fails."""

import json
from pathlib import Path

import pytest

from daemon_process import MakeDaemon, inbox_daemon
from job_files import chats
from scripted_card import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    LIBRARY_NOT_FOUND,
    NOT_SUPPORTED,
    ScriptedCard,
)

SLOW = ("--latency", "0.1", "--slots", "4")
WIDE = ("--latency", "0.2", "--slots", "64")
MANY = 1000
MUTE = {
    f"nvmlDeviceGet{sensor}": NOT_SUPPORTED
    for sensor in (
        *("MemoryInfo", "Temperature", "PowerUsage", "EnforcedPowerLimit", "UtilizationRates"),
        *("CurrentClocksEventReasons", "CurrentClocksThrottleReasons"),
        *("ComputeRunningProcesses", "GraphicsRunningProcesses", "TotalEnergyConsumption"),
    )
}


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedCard:
    """The card that the test's daemons find."""
    card = ScriptedCard(tmp_path)
    monkeypatch.setenv("PYTHONPATH", card.path)
    return card


@pytest.mark.parametrize("code", [GPU_IS_LOST, DRIVER_NOT_LOADED])
def test_job_waits_for_a_card_that_is_lost(
    make_daemon: MakeDaemon, card: ScriptedCard, code: int
) -> None:
    """Nothing is sent while vLLM's card is away, nothing fails, and all goes on when it is back."""
    card.serve(*WIDE)
    daemon = make_daemon(engine={"model": "standin"}).start()
    daemon.drop("job", chats(MANY))
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"], "the first answers")
    card.set(fail={"*": code})
    lost = daemon.wait_status(lambda s: s["worker"]["governor"] == "closed", "a closed governor")
    assert (lost["status"], lost["worker"]["state"]) == ("unhealthy", "paused")
    assert any("Scripted GPU cannot be used" in reason for reason in lost["reasons"])
    waiting = daemon.wait_status(lambda s: s["worker"]["in_flight"] == 0, "an idle engine")
    daemon.wait_writings(2)
    done = daemon.status_now()["jobs"][0]
    assert (done["state"], done["failed"], done["retrying"]) == ("running", 0, 0)
    assert waiting["jobs"][0]["completed"] < done["requests"]
    card.set(fail={})
    outputs = daemon.check_results("job", chats(MANY))
    assert not outputs.errors
    changes = daemon.events("governor_changed")
    assert [change["state"] for change in changes] == ["closed", "open"]


def test_hot_card_stops_the_work_until_it_is_cool(
    make_daemon: MakeDaemon, card: ScriptedCard
) -> None:
    """Above stop_c nothing is sent, status and log say why, and below resume_c it goes on."""
    daemon = make_daemon(*SLOW).start()
    card.set(temperature_c=91, reasons=0x44)
    hot = daemon.wait_status(lambda s: s["worker"]["governor"] == "closed", "a closed governor")
    assert (hot["status"], hot["worker"]["window"]) == ("degraded", 0)
    assert hot["gpu"]["throttle_reasons"] == ["sw_power_cap", "hw_thermal"]
    daemon.drop("job", chats(20))
    daemon.wait_active("job")
    daemon.wait_writings(2)
    assert daemon.execution_count() == 0
    card.set(temperature_c=74, reasons=0)
    daemon.check_results("job", chats(20))
    shrunk, *_ = reversed(daemon.events("governor_changed"))
    assert shrunk["before"] in {"closed", "shrink"}
    assert "91 °C" in daemon.events("governor_changed")[0]["reason"]


def test_energy_of_a_job_is_shown_while_it_runs_and_after_its_end(
    make_daemon: MakeDaemon, card: ScriptedCard
) -> None:
    """Joules in all and for 1,000 tokens stand in the health, the job's status and the command."""
    daemon = make_daemon(*SLOW).start()
    daemon.drop("job", chats(60))
    running = daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["energy_j"], "some joules")
    job = running["jobs"][0]
    each = job["energy_j_per_1000_output_tokens"]
    assert each == pytest.approx(1000 * job["energy_j"] / job["output_tokens"], abs=0.001)
    daemon.check_results("job", chats(60))
    status = daemon.notice("job")
    # 60 requests of 0.1 s, 4 at a time, take 1.5 s at least, at 100 W.
    assert status["energy_j"] > 100
    each = 1000 * status["energy_j"] / status["usage"]["output_tokens"]
    assert status["energy_j_per_1000_output_tokens"] == pytest.approx(each, abs=0.001)
    shown = inbox_daemon("job", "job", "--config", daemon.config)
    assert "J for 1,000 output tokens" in shown.stdout


def test_energy_outlives_a_kill(make_daemon: MakeDaemon, card: ScriptedCard) -> None:
    """What was charged up to the last checkpoint is still charged after a kill -9."""
    daemon = make_daemon("--latency", "0.1", "--slots", "2").start()
    daemon.drop("job", chats(100, {99: "[[hang]]"}))
    before = daemon.wait_status(
        lambda s: s["jobs"] and (s["jobs"][0]["energy_j"] or 0) > 100, "some joules"
    )
    daemon.kill()
    card.set(power_w=0)
    after = daemon.start().wait_status(lambda s: s["jobs"], "the job again")
    assert after["jobs"][0]["energy_j"] >= before["jobs"][0]["energy_j"]


@pytest.mark.parametrize(
    ("fail", "seen"), [(MUTE, True), ({"*": LIBRARY_NOT_FOUND}, False)], ids=["mute", "none"]
)
def test_card_without_sensors_and_no_card_are_normal(
    make_daemon: MakeDaemon,
    card: ScriptedCard,
    fail: dict[str, int],
    seen: bool,  # noqa: FBT001 - a table
) -> None:
    """The job runs as usual, unknown figures are null, and the service is healthy."""
    card.set(fail=fail)
    card.serve()
    daemon = make_daemon(engine={"model": "standin"}).start()
    daemon.run_job("job", chats(20))
    status = json.loads((daemon.spool / "outbox" / "job" / "status.json").read_bytes())
    assert status["energy_j"] is None
    assert status["energy_j_per_1000_output_tokens"] is None
    health = daemon.status_now()
    assert (health["status"], health["reasons"]) == ("healthy", [])
    assert (health["gpu"] is not None) == seen
    assert not daemon.events("governor_changed")
