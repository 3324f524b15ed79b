"""The hunt: poison requests are found by bisection and nobody else is condemned."""

import math
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.hunt import Hunt, Suspect

JOB = "01JZZZZZZZZZZZZZZZZZZZZZZ0"


@dataclass
class Simulation:
    """An engine with poison requests, and a runner that does as the hunt says.

    The engine takes the open requests in any order and either answers a request or,
    where it is poison, dies with all that it had taken.
    """

    width: int
    poison: set[Suspect]
    rng: Random
    window: int
    reload: bool = False
    hunt: Hunt = field(default_factory=Hunt)
    answered: set[Suspect] = field(default_factory=set)
    found: set[Suspect] = field(default_factory=set)
    deaths: int = 0
    runs: dict[Suspect, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """List the requests of one job."""
        self.all = [(JOB, line) for line in range(1, self.width + 1)]

    def open(self) -> list[Suspect]:
        """Who has no outcome yet."""
        return [s for s in self.all if s not in self.answered | self.found]

    def step(self) -> None:
        """Run one engine until it dies or has nothing left to do."""
        while taken := self.take():
            self.rng.shuffle(taken)
            for place, suspect in enumerate(taken):
                self.runs[suspect] = self.runs.get(suspect, 0) + 1
                if suspect in self.poison:
                    self.die(taken[place:])
                    return
                self.hunt.answered(suspect)
                self.answered.add(suspect)

    def take(self) -> list[Suspect]:
        """Who is sent to the engine together."""
        group = self.hunt.group if self.hunt else self.open()
        return list(group[: self.window])

    def die(self, in_flight: list[Suspect]) -> None:
        """Tell the hunt, and perhaps restart the daemon in the middle of it."""
        self.deaths += 1
        self.found |= set(self.hunt.died(in_flight))
        together = [suspect for group in self.hunt.groups for suspect in group]
        assert len(together) == len(set(together))
        if self.reload:
            self.hunt = Hunt.load(self.hunt.dump())
            self.hunt.keep(set(self.open()))

    def finish(self) -> None:
        """Go on until every request has its outcome."""
        for _ in range(20 * self.width + 20):
            if not self.open():
                return
            self.step()
        pytest.fail("the hunt does not end")


@st.composite
def simulations(draw: st.DrawFn, most_poison: int = 6) -> Simulation:
    """Some requests, some of them poison, and a window that may be smaller."""
    width = draw(st.integers(1, 70))
    places = st.sets(st.integers(1, width), max_size=min(width, most_poison))
    poison = {(JOB, line) for line in draw(places)}
    seed = draw(st.integers(0, 2**32))
    return Simulation(width, poison, Random(seed), draw(st.integers(1, 70)), draw(st.booleans()))


@given(simulations())
def test_every_innocent_is_answered_and_every_poison_found(simulation: Simulation) -> None:
    """Whatever the order, the window and the restarts, each request ends as what it is."""
    simulation.finish()
    assert simulation.found == simulation.poison
    assert simulation.answered == set(simulation.all) - simulation.poison
    assert not simulation.hunt
    assert simulation.hunt.dump() is None


@given(st.integers(1, 300), st.data())
def test_one_poison_request_costs_few_engine_starts(width: int, data: st.DataObject) -> None:
    """The engine dies at most log2(window) + 2 times for one poison request."""
    line = data.draw(st.integers(1, width))
    rng = Random(data.draw(st.integers(0, 2**32)))
    simulation = Simulation(width, {(JOB, line)}, rng, window=width)
    simulation.finish()
    assert simulation.deaths <= math.ceil(math.log2(width)) + 2


@given(simulations(most_poison=4))
def test_several_poison_requests_cost_as_much_as_each_alone(simulation: Simulation) -> None:
    """The engine starts within 2·log2(window) + 4 times for each poison request."""
    simulation.finish()
    bound = 2 * math.log2(max(simulation.window, 1)) + 4
    assert simulation.deaths <= bound * max(len(simulation.poison), 1)


@given(simulations())
def test_a_restart_of_the_daemon_changes_nothing(simulation: Simulation) -> None:
    """A hunt that is stored and read after each death goes the same way to the same end."""
    other = Simulation(
        simulation.width, simulation.poison, Random(7), simulation.window, reload=True
    )
    simulation.rng, simulation.reload = Random(7), False
    simulation.finish()
    other.finish()
    assert (simulation.deaths, simulation.runs) == (other.deaths, other.runs)


SUSPECTS = st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 9))


@given(
    st.lists(st.lists(SUSPECTS, max_size=4), max_size=4),
    st.dictionaries(SUSPECTS, st.integers(1, 3), max_size=4),
)
def test_what_is_stored_is_read_back(
    groups: list[list[Suspect]], deaths: dict[Suspect, int]
) -> None:
    """Groups keep their order, and deaths their counts."""
    hunt = Hunt(groups, deaths)
    assert Hunt.load(hunt.dump()) == hunt


def test_no_hunt_is_stored_as_nothing() -> None:
    """Where there is nothing to remember, nothing is written."""
    assert Hunt().dump() is None
    assert not Hunt.load(None)
    assert Hunt().group == []


def test_one_death_alone_condemns_nobody() -> None:
    """An engine that dies by chance under a single request gives it a second try."""
    hunt = Hunt()
    assert hunt.died([(JOB, 1)]) == []
    assert hunt.group == [(JOB, 1)]
    hunt.answered((JOB, 1))
    assert hunt.died([(JOB, 1)]) == []


def test_two_deaths_alone_do() -> None:
    """The second death of an engine under one request alone makes it poison."""
    hunt = Hunt()
    hunt.died([(JOB, 1)])
    assert hunt.died([(JOB, 1)]) == [(JOB, 1)]
    assert not hunt


def test_suspects_that_had_not_started_stay_suspects() -> None:
    """When the engine dies before the whole group was sent, the rest is tried later."""
    hunt = Hunt([[(JOB, 1), (JOB, 2), (JOB, 3), (JOB, 4)]])
    hunt.died([(JOB, 1), (JOB, 2)])
    assert hunt.groups == [[(JOB, 3), (JOB, 4)], [(JOB, 2)], [(JOB, 1)]]


def test_a_death_with_nothing_in_flight_changes_nothing() -> None:
    """An engine that dies of itself accuses nobody."""
    hunt = Hunt([[(JOB, 1)]])
    assert hunt.died([]) == []
    assert hunt.groups == [[(JOB, 1)]]


def test_suspects_that_are_gone_are_dropped() -> None:
    """After a restart only requests that are still open are hunted."""
    hunt = Hunt([[(JOB, 1), (JOB, 2)], [(JOB, 3)]], {(JOB, 3): 1})
    hunt.keep({(JOB, 2)})
    assert (hunt.groups, hunt.deaths) == ([[(JOB, 2)]], {})
