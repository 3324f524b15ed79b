"""The hunt for a poison request: bisection over engine deaths.

Purpose: find the request that kills the engine among those that were in flight when
it died, while every other one gets its answer.
Invariants: pure; a suspect is in at most one group; only the newest group is tried,
and nothing else runs meanwhile; a request is poison when it has killed the engine
twice while it ran alone, so that one death by chance condemns nobody.
Cost: with w requests in flight at the first death, one poison request takes
log2(w) + 2 engine deaths at most.
"""

from dataclasses import dataclass, field

import orjson

DEATHS_ALONE = 2

Suspect = tuple[str, int]
"""A request by its job's id and its line number."""


@dataclass(slots=True)
class Hunt:
    """The groups still to be tried, the newest last, and who died alone before."""

    groups: list[list[Suspect]] = field(default_factory=list)
    deaths: dict[Suspect, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Say whether there is anybody to be tried."""
        return bool(self.groups)

    @property
    def group(self) -> list[Suspect]:
        """Who may run now; empty when there is no hunt."""
        return self.groups[-1] if self.groups else []

    def died(self, in_flight: list[Suspect]) -> list[Suspect]:
        """Note that the engine died with these in flight; return who is poison.

        While a hunt is on, `in_flight` is what was left of the newest group.
        """
        flying = set(in_flight)
        waiting = [suspect for suspect in self.group if suspect not in flying]
        if self.groups:
            self.groups.pop()
        if waiting:  # of the same group, but not yet started
            self.groups.append(waiting)
        if len(in_flight) == 1:
            return self._died_alone(in_flight[0])
        half = (len(in_flight) + 1) // 2
        self.groups += [part for part in (in_flight[half:], in_flight[:half]) if part]
        return []

    def _died_alone(self, suspect: Suspect) -> list[Suspect]:
        self.deaths[suspect] = self.deaths.get(suspect, 0) + 1
        if self.deaths[suspect] >= DEATHS_ALONE:
            del self.deaths[suspect]
            return [suspect]
        self.groups.append([suspect])
        return []

    def answered(self, suspect: Suspect) -> None:
        """Clear a suspect that was answered, or is gone, and any group that is empty."""
        self.deaths.pop(suspect, None)
        for group in self.groups:
            if suspect in group:
                group.remove(suspect)
        self.groups = [group for group in self.groups if group]

    def keep(self, open_suspects: set[Suspect]) -> None:
        """Drop whoever is not open any more, as after the daemon was started anew."""
        for suspect in {s for group in self.groups for s in group} - open_suspects:
            self.answered(suspect)

    def dump(self) -> bytes | None:
        """The stored form; None when there is nothing to store."""
        if not self.groups and not self.deaths:
            return None
        return orjson.dumps({"groups": self.groups, "deaths": list(self.deaths.items())})

    @classmethod
    def load(cls, data: bytes | None) -> "Hunt":
        """Read the stored form."""
        if data is None:
            return cls()
        stored = orjson.loads(data)
        return cls(
            groups=[[(job, line) for job, line in group] for group in stored["groups"]],
            deaths={(job, line): count for (job, line), count in stored["deaths"]},
        )
