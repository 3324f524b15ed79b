"""The parts of one daemon, put together.

Purpose: the one place where the loops and what they work on are joined, for the daemon and
for the tests that drive them without one.
Invariants: nothing runs yet and nothing on the disk changes; each part gets what it needs
and knows no more.
"""

from collections.abc import Callable
from dataclasses import dataclass

from inbox_daemon.contract.config import Config
from inbox_daemon.engine.base import Engine, EngineKind
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import Gpu
from inbox_daemon.intake.admission import Admission
from inbox_daemon.intake.control import Controller
from inbox_daemon.intake.loop import Intake
from inbox_daemon.intake.redrive import Redriver
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.validation import Served
from inbox_daemon.run.runner import Runner
from inbox_daemon.service.worker import Worker
from inbox_daemon.spool import Spool


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon is made of."""

    config: Config
    spool: Spool
    ledger: Ledger
    jobs: ActiveJobs
    worker: Worker
    runner: Runner
    admission: Admission
    redriver: Redriver
    controller: Controller
    intake: Intake


def assemble(  # noqa: PLR0913, PLR0917 - the parts that it joins
    config: Config,
    spool: Spool,
    ledger: Ledger,
    jobs: ActiveJobs,
    make_engine: Callable[[Callable[[], None]], Engine],
    make_governor: Callable[[EngineKind], Governor],
    gpu: Gpu,
    on_change: Callable[[], None] = lambda: None,
) -> Parts:
    """Join the parts; call it in the event loop that will run them.

    `make_engine` takes what the engine is to call after each change of its state;
    `on_change` is called in that loop after each change that the status would show.
    """

    def changed() -> None:
        runner.wake()
        on_change()

    engine = make_engine(changed)
    governor = make_governor(engine.kind)
    worker = Worker(config, jobs, engine, governor, gpu, changed)
    runner = Runner(config, spool, ledger, jobs, engine, governor, worker.charge_energy)

    def served() -> Served:
        return Served(engine.info.default_model, engine.info.known_models)

    admission = Admission(config, spool, ledger, jobs, served)
    redriver = Redriver(spool, ledger, admission)
    controller = Controller(jobs, ledger, redriver, served)
    intake = Intake(config, spool, jobs, admission, controller, changed)
    jobs.on_change = changed
    return Parts(
        config, spool, ledger, jobs, worker, runner, admission, redriver, controller, intake
    )
