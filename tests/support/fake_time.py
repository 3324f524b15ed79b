"""Clocks that a test sets: wall time, the time since boot, and synchronisation."""

from dataclasses import dataclass

from inbox_daemon.jobs.clock import Reading

DAY = 86400.0
NOW = 20_000 * DAY
BOOT = 5000.0


@dataclass
class FakeTime:
    """A machine's clocks, which stand still unless a test moves them."""

    wall: float = NOW
    boot: float = BOOT
    boot_id: str = "this"
    synchronised: float | None = None

    def read(self) -> Reading:
        """Both clocks."""
        return Reading(self.wall, self.boot)

    def synchronised_at(self) -> float | None:
        """The last synchronisation."""
        return self.synchronised

    def go_on(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.boot += seconds
