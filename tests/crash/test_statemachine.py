"""The whole product against a model: random actions, crashes between any two steps.

Purpose: whatever is dropped, run, cancelled, paused, redriven, purged, collected and
interrupted, each accepted line has one outcome, a refused job runs nothing, and the dead
letters are those that the published folders tell of.
The long run is `make torture`; TORTURE_STEPS sets how many steps at least.
"""

import os
import shutil

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)

from inbox_daemon.contract.names import ALL, Order
from job_files import chat
from torture.model import DONE, Model

STEPS = int(os.environ.get("TORTURE_STEPS", "500"))
STEPS_EACH = 50
NAMES = ("a", "b", "c", "d.e")
LINES = st.lists(
    st.sampled_from(["", "", "", "", "", "", "[[400]]", "[[500]]", "[[500x1]]", "[[crashx1]]"])
    | st.sampled_from(["", "", "[[crash]]"]),
    min_size=1,
    max_size=8,
)


class Machine(Model):
    """The actions; what must hold after each is the model's."""

    # -- drops ----------------------------------------------------------------------

    def _drop_new(self, name: str, marks: list[str], lane: str) -> None:
        self.drops += 1
        lines = [chat(f"r{n}", f"{self.drops}/{n} {mark}") for n, mark in enumerate(marks)]
        self._drop(name, b"".join(lines), lane)

    @rule(name=st.sampled_from(NAMES), marks=LINES, lane=st.sampled_from(["", "high", "low"]))
    def drop(self, name: str, marks: list[str], lane: str) -> None:
        """Send a new file under some name."""
        self._step(lambda: self._drop_new(name, marks, lane))

    @rule(
        name=st.sampled_from(NAMES),
        marks=LINES,
        turns=st.integers(0, 60),
        crash_at=st.none() | st.integers(0, 200),
    )
    def drop_and_run(self, name: str, marks: list[str], turns: int, crash_at: int | None) -> None:
        """Send a new file and let it be taken and begun, or crash in the middle of that."""

        def act() -> None:
            self.world.scan()
            self.world.turn(turns)

        self._drop_new(name, marks, "")
        self._step(act, crash_at)

    @rule(name=st.sampled_from(NAMES), how=st.sampled_from(["json", "twice", "url"]))
    def drop_invalid(self, name: str, how: str) -> None:
        """Send a file with something wrong in it."""
        self.drops += 1
        good = chat("r0", f"{self.drops}/0 ")
        bad = {"json": b"{]\n", "twice": good, "url": b'{"custom_id": "x", "url": "/"}\n'}[how]
        self._step(lambda: self._drop(name, good + bad))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def drop_again(self, data: st.DataObject) -> None:
        """Send a file again, as it was."""
        name = data.draw(st.sampled_from(sorted(self.sent)))
        content = data.draw(st.sampled_from(self.sent[name]))
        self._step(lambda: self._drop(name, content))

    @precondition(lambda self: self.sent)
    @rule(crash_at=st.none() | st.integers(0, 60))
    def scan(self, crash_at: int | None) -> None:
        """Let everything in inbox/ be answered, or crash in the middle of it."""
        if self.waiting:
            self._step(self.world.scan, crash_at)

    # -- work -----------------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(turns=st.integers(1, 80), crash_at=st.none() | st.integers(0, 120))
    def run(self, turns: int, crash_at: int | None) -> None:
        """Let the runner go on for a while, or crash in the middle of it."""
        if self.world.queue.entries:
            self._step(lambda: self.world.turn(turns), crash_at)

    @precondition(lambda self: self.sent)
    @rule()
    def finish(self) -> None:
        """Let everything end that is not paused."""
        if self.world.queue.entries:
            self._step(lambda: self.world.work(self._idle))

    def _idle(self) -> bool:
        queue = self.world.queue
        return all(
            queue.is_paused(e.record) and e.record.ending is None for e in queue.entries.values()
        )

    @precondition(lambda self: self.sent)
    @rule()
    def crash(self) -> None:
        """Kill the daemon and start it again."""
        if self.changed and (self.waiting or self.world.queue.entries):
            self._step(lambda: None, 0, always=True)

    @precondition(lambda self: self.sent)
    @rule()
    def drain(self) -> None:
        """Stop the daemon politely and start it again."""
        if self.world.queue.entries:
            self._step(self._restart)

    def _restart(self) -> None:
        self.world.drain()
        self.world.open()

    @precondition(lambda self: self.sent and not self.killed)
    @rule(turns=st.integers(0, 20))
    def kill_engine(self, turns: int) -> None:
        """Let the engine die by chance; two such deaths may rightly set any request aside."""

        def act() -> None:
            self.world.turn(turns)
            self.world.engine.die_now()

        self.killed = True
        self._step(act)

    # -- orders ---------------------------------------------------------------------

    @rule(
        name=st.sampled_from([*NAMES, ALL]),
        order=st.sampled_from([Order.PAUSE, Order.RESUME, Order.RESUME]),
        crash_at=st.none() | st.integers(0, 6),
    )
    def pause(self, name: str, order: Order, crash_at: int | None) -> None:
        """Hold a job, or all, or let go."""
        self._step(lambda: self._obey(name, order), crash_at)

    @precondition(lambda self: self.sent)
    @rule(name=st.sampled_from(NAMES), crash_at=st.none() | st.integers(0, 6))
    def cancel(self, name: str, crash_at: int | None) -> None:
        """End a job early."""
        for job in self.jobs.values():
            if job.name == name and job.id in self.world.queue.entries:
                job.cancelled = True
        self._step(lambda: self._obey(name, Order.CANCEL), crash_at)

    @precondition(lambda self: self.sent)
    @rule(name=st.sampled_from([*NAMES, ALL]), crash_at=st.none() | st.integers(0, 40))
    def redrive(self, name: str, crash_at: int | None) -> None:
        """Run dead letters again."""
        if self._letters():
            self._step(lambda: self._obey(name, Order.REDRIVE), crash_at)

    @precondition(lambda self: self.sent)
    @rule(name=st.sampled_from([*NAMES, ALL]), crash_at=st.none() | st.integers(0, 3))
    def purge(self, name: str, crash_at: int | None) -> None:
        """Give dead letters up."""
        busy, before = self.world.ledger.being_redriven(), self._letters()
        chosen = {
            (letter.job_id, letter.custom_id or "")
            for letter in self.world.ledger.dead_letters()
            if name in {ALL, letter.job} and (letter.job_id, letter.line) not in busy
        }
        # Not by an order: the loop would turn meanwhile, and redriven jobs end.
        self._step(lambda: self.world.redriver.purge(name, None), crash_at)
        gone = before - self._letters()
        assert gone in (chosen, set()), f"{gone} were purged instead of {chosen}"
        assert crash_at is not None or gone == chosen
        for job_id, custom_id in gone:
            self.jobs[job_id].purged.add(custom_id)

    # -- the web app ----------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(name=st.sampled_from(NAMES))
    def collect(self, name: str) -> None:
        """Take a folder away, whatever it holds."""
        if (self.world.spool.outbox / name).exists():
            self._step(lambda: shutil.rmtree(self.world.spool.outbox / name, ignore_errors=True))


def test_random_actions_and_crashes_agree_with_the_model() -> None:
    """After any actions and crashes each accepted line has exactly one outcome."""
    while DONE["steps"] < STEPS:
        left = STEPS - DONE["steps"]
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=max(1, min(50, left // STEPS_EACH)),
                stateful_step_count=STEPS_EACH,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )
    print(DONE)  # noqa: T201 - make torture shows it
