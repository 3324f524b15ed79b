"""The poison request: bisection over engine deaths.

Purpose: find the request that kills the engine among those that were in flight when
it died, while every other one gets its answer.
Invariants: pure, time is passed in; a suspect is in one group or put off, never both; only
the newest group is tried, and nothing else runs meanwhile; a request is poison only when
the engine has died several times while it ran alone, and more often than that where
engines were seen to die by chance, so that a slow request which happened to be there
is not taken for it.
Cost: one poison request among w in flight takes at most 2·log2(w) + 3 engine deaths.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

# This many deaths alone make a request poison, fewer where few were in flight.
DEATHS_ALONE = 5
# Each death that turned out to be chance asks for this many more, up to a limit.
CHANCE_WEIGHT, MOST_DEATHS_ALONE = 2, 8
# A chance death makes the next ones doubtful for this long.
CHANCE_S = 3600.0

Suspect = tuple[str, int]
"""A request by its job's id and its line number."""


@dataclass(slots=True)
class Bisection:
    """Which requests are suspected, and of what.

    `groups` are still to be tried, the newest last.  `put_off` has those that died alone:
    they are tried again once nothing else of their job is left, when whatever killed
    engines by chance may be over.  `deaths` counts the deaths alone, `width` the requests
    that were in flight at the largest death, `blamed` is true once one died alone since
    the bisection began, and `chances` when deaths were proven to be chance, in seconds since 1970.
    """

    groups: list[list[Suspect]] = field(default_factory=list)
    deaths: dict[Suspect, int] = field(default_factory=dict)
    put_off: list[Suspect] = field(default_factory=list)
    width: int = 1
    blamed: bool = False
    chances: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Return whether there is a suspect to be tried now."""
        return bool(self.groups)

    @property
    def group(self) -> list[Suspect]:
        """The suspects that may run now; empty when none is to be tried."""
        return self.groups[-1] if self.groups else []

    @property
    def suspects(self) -> set[Suspect]:
        """All suspects that are still to be tried, now or later."""
        return {suspect for group in self.groups for suspect in group} | set(self.put_off)

    def died(self, in_flight: list[Suspect], now: float) -> dict[Suspect, int]:
        """Note that the engine died with these in flight; return which are poison.

        The poison comes with the number of its deaths.  While a bisection is on, `in_flight` is
        what was left of the newest group.
        """
        flying = set(in_flight)
        waiting = [suspect for suspect in self.group if suspect not in flying]
        if self.groups:
            self.groups.pop()
        elif not self.put_off:  # a new bisection
            self.width, self.blamed = 1, False
        self.width = max(self.width, len(in_flight))
        if waiting:  # of the same group, but not yet started
            self.groups.append(waiting)
        if len(in_flight) == 1:
            suspect = in_flight[0]
            self.blamed = True
            count = self.deaths[suspect] = self.deaths.get(suspect, 0) + 1
            if count >= self._deaths_needed(now):
                del self.deaths[suspect]
                return {suspect: count}
            self.put_off.append(suspect)
            return {}
        half = (len(in_flight) + 1) // 2
        self.groups += [part for part in (in_flight[half:], in_flight[:half]) if part]
        return {}

    def _deaths_needed(self, now: float) -> int:
        """How many deaths alone are a proof: as many as the engine's starts allow."""
        allowed = int(2 * math.log2(self.width) + 3) - math.ceil(math.log2(self.width))
        recent = sum(now - at < CHANCE_S for at in self.chances)
        wanted = min(DEATHS_ALONE, allowed) + CHANCE_WEIGHT * recent
        return min(wanted, MOST_DEATHS_ALONE)

    def answered(self, suspect: Suspect, now: float) -> None:
        """Clear a suspect that was answered: whatever died around it died by chance."""
        died_alone = suspect in self.deaths
        hunting = bool(self.groups)
        self.forget(suspect)
        if died_alone or (hunting and not self.groups and not self.blamed):
            self.chances = [at for at in self.chances if now - at < CHANCE_S] + [now]

    def forget(self, suspect: Suspect) -> None:
        """Forget a suspect whose request is gone, and any group that is empty."""
        self.deaths.pop(suspect, None)
        for group in (*self.groups, self.put_off):
            if suspect in group:
                group.remove(suspect)
        self.groups = [group for group in self.groups if group]

    def recall(self, job_id: str) -> None:
        """Try those of a job again that were put off.

        Those that died alone once are tried together first, since what was chance in all
        of them is over with one trial; the others alone, as together they would only cost
        more deaths.
        """
        mine = [suspect for suspect in self.put_off if suspect[0] == job_id]
        self.put_off = [suspect for suspect in self.put_off if suspect[0] != job_id]
        once = [suspect for suspect in mine if self.deaths.get(suspect, 0) <= 1]
        self.groups += [[suspect] for suspect in mine if suspect not in once]
        self.groups += [once] if once else []

    def postpone(self, job_id: str) -> None:
        """Put off all suspects of a job, as one that was paused."""
        mine = [suspect for suspect in self.suspects if suspect[0] == job_id]
        others = [[s for s in group if s[0] != job_id] for group in self.groups]
        self.groups = [group for group in others if group]
        self.put_off = [s for s in self.put_off if s[0] != job_id] + sorted(mine)

    def keep(self, open_suspects: set[Suspect]) -> None:
        """Forget those that are not open any more, as after a restart of the daemon."""
        for suspect in (self.suspects | self.deaths.keys()) - open_suspects:
            self.forget(suspect)

    def dump(self) -> bytes | None:
        """The stored form; None when there is nothing to store."""
        if not (self.groups or self.put_off or self.deaths or self.chances):
            return None
        stored = asdict(self) | {"deaths": list(self.deaths.items())}
        return orjson.dumps(stored)

    @classmethod
    def load(cls, data: bytes | None) -> "Bisection":
        """Read the stored form, also that of a version which put none off."""
        if data is None:
            return cls()
        stored: dict[str, Any] = orjson.loads(data)
        stored["groups"] = [[(job, line) for job, line in group] for group in stored["groups"]]
        stored["put_off"] = [(job, line) for job, line in stored.get("put_off", [])]
        stored["deaths"] = {(job, line): count for (job, line), count in stored["deaths"]}
        return cls(**stored)
