"""The hunt: poison requests are found by bisection and nobody else is condemned."""

import math
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.run.poison import CHANCE_S, DEATHS_ALONE, MOST_DEATHS_ALONE, Bisection, Suspect

JOB = "01JZZZZZZZZZZZZZZZZZZZZZZ0"
NOW = 1e9
A, B, C, D = ((JOB, line) for line in range(1, 5))


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
    hunt: Bisection = field(default_factory=Bisection)
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
                self.hunt.answered(suspect, NOW)
                self.answered.add(suspect)

    def take(self) -> list[Suspect]:
        """Who is sent to the engine together."""
        others = [s for s in self.open() if s not in self.hunt.put_off]
        if not self.hunt and not others:
            self.hunt.recall(JOB)
        return list((self.hunt.group or others)[: self.window])

    def die(self, in_flight: list[Suspect]) -> None:
        """Tell the hunt, and perhaps restart the daemon in the middle of it."""
        self.deaths += 1
        self.found |= set(self.hunt.died(in_flight, NOW))
        together = [suspect for group in self.hunt.groups for suspect in group]
        together += self.hunt.put_off
        assert len(together) == len(set(together))
        if self.reload:
            self.hunt = Bisection.load(self.hunt.dump())
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
    """With the first start, one poison request takes at most 2·log2(window) + 4 of them."""
    line = data.draw(st.integers(1, width))
    rng = Random(data.draw(st.integers(0, 2**32)))
    simulation = Simulation(width, {(JOB, line)}, rng, window=width)
    simulation.finish()
    assert simulation.deaths + 1 <= 2 * math.log2(width) + 4
    assert simulation.deaths <= math.ceil(math.log2(width)) + DEATHS_ALONE


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
HUNTS = st.builds(
    Bisection,
    groups=st.lists(st.lists(SUSPECTS, max_size=4), max_size=4),
    deaths=st.dictionaries(SUSPECTS, st.integers(1, 3), max_size=4),
    put_off=st.lists(SUSPECTS, max_size=4),
    width=st.integers(1, 4096),
    blamed=st.booleans(),
    chances=st.lists(st.floats(0, 2e9), max_size=3),
)


@given(HUNTS)
def test_what_is_stored_is_read_back(hunt: Bisection) -> None:
    """Groups keep their order, and deaths their counts."""
    stored = hunt.dump()
    assert stored is None or Bisection.load(stored) == hunt


def test_no_hunt_is_stored_as_nothing() -> None:
    """Where there is nothing to remember, nothing is written."""
    assert Bisection().dump() is None
    assert not Bisection.load(None)
    assert Bisection().group == []


def test_a_hunt_of_an_older_version_goes_on() -> None:
    """What was stored before anybody was put off is read as it was meant."""
    hunt = Bisection.load(
        b'{"groups":[[["job",1],["job",2]],[["job",3]]],"deaths":[[["job",3],1]]}'
    )
    assert hunt.groups == [[("job", 1), ("job", 2)], [("job", 3)]]
    assert (hunt.deaths, hunt.put_off, hunt.chances) == ({("job", 3): 1}, [], [])


def die_alone(
    hunt: Bisection, suspect: Suspect, times: int, now: float = NOW
) -> dict[Suspect, int]:
    """Let a suspect be tried alone and the engine die, so many times."""
    found: dict[Suspect, int] = {}
    for _ in range(times):
        assert found == {}
        hunt.recall(JOB)
        found = hunt.died([suspect], now)
    return found


def test_deaths_alone_condemn_in_the_end() -> None:
    """Of a wide window it takes all of them, and nothing is left of the hunt."""
    hunt = Bisection()
    hunt.died([(JOB, line) for line in range(1, 65)], NOW)
    hunt.groups = [[A]]
    assert die_alone(hunt, A, DEATHS_ALONE) == {A: DEATHS_ALONE}
    assert (hunt.groups, hunt.put_off, hunt.deaths) == ([], [], {})


def test_a_window_of_one_allows_three_deaths() -> None:
    """The engine's starts are counted there too: four, with the first."""
    assert die_alone(Bisection(), A, 3) == {A: 3}


def test_who_died_alone_waits_until_the_others_are_done() -> None:
    """It may have been chance, so the rest of the job is not held up, and time passes."""
    hunt = Bisection()
    hunt.died([A, B], NOW)
    assert hunt.died([A], NOW) == {}
    assert (hunt.group, hunt.put_off) == ([B], [A])
    hunt.answered(B, NOW)
    assert not hunt
    hunt.recall("another job")
    assert not hunt
    hunt.recall(JOB)
    assert (hunt.group, hunt.put_off) == ([A], [])


def test_those_that_were_put_off_are_tried_together() -> None:
    """What was chance in all of them is over with one trial."""
    hunt = Bisection(deaths={A: 1, B: 1, C: 1}, put_off=[A, B, C])
    hunt.recall(JOB)
    assert hunt.group == [A, B, C]
    hunt.died([A, B, C], NOW)
    assert hunt.groups == [[C], [A, B]]


def test_those_that_died_alone_again_are_tried_alone() -> None:
    """Two that are poison do not die together each time as well."""
    hunt = Bisection(deaths={A: 2, B: 1, C: 3}, put_off=[A, B, C])
    hunt.recall(JOB)
    assert (hunt.groups, hunt.put_off) == ([[A], [C], [B]], [])


def test_the_suspects_of_a_paused_job_wait() -> None:
    """They leave their groups to the others, and are tried when they are recalled."""
    other = ("another", 1)
    hunt = Bisection([[A, other], [B, C]], {D: 1}, [D])
    hunt.postpone(JOB)
    assert (hunt.groups, hunt.put_off) == ([[other]], [A, B, C, D])
    hunt.recall(JOB)
    assert hunt.group == [A, B, C, D]


def test_a_death_that_was_chance_makes_the_next_ones_doubtful() -> None:
    """Somebody who killed alone and is answered shows that engines die by themselves."""
    hunt = Bisection()
    die_alone(hunt, A, 1)
    hunt.recall(JOB)
    hunt.answered(A, NOW)
    assert hunt.chances == [NOW]
    assert die_alone(hunt, B, 5) == {B: 5}


def test_a_whole_group_that_was_answered_shows_a_chance_too() -> None:
    """An engine that died under a group whose members are all answered did so by itself."""
    hunt = Bisection()
    hunt.died([A, B], NOW)
    hunt.answered(A, NOW)
    assert hunt.chances == []
    hunt.answered(B, NOW)
    assert hunt.chances == [NOW]


def test_the_answers_beside_a_poison_request_show_no_chance() -> None:
    """Who was merely beside the one that is to blame says nothing about the engine."""
    hunt = Bisection()
    hunt.died([A, B], NOW)
    hunt.died([A], NOW)
    hunt.answered(B, NOW)
    assert hunt.chances == []


def test_many_chances_ask_for_no_more_than_a_limit() -> None:
    """Poison is found also where engines die all the time."""
    hunt = Bisection(chances=[NOW] * 9)
    assert die_alone(hunt, A, MOST_DEATHS_ALONE) == {A: MOST_DEATHS_ALONE}


def test_a_chance_is_forgotten_with_time() -> None:
    """What happened hours ago makes no request less poisonous."""
    hunt = Bisection(chances=[NOW] * 9)
    assert die_alone(hunt, A, 3, NOW + CHANCE_S) == {A: 3}


def test_a_request_that_is_gone_shows_nothing() -> None:
    """One that was cancelled was not answered: its deaths are no chance."""
    hunt = Bisection(deaths={A: 2}, put_off=[A])
    hunt.forget(A)
    assert hunt == Bisection()


def test_suspects_that_had_not_started_stay_suspects() -> None:
    """When the engine dies before the whole group was sent, the rest is tried later."""
    hunt = Bisection([[A, B, C, D]])
    hunt.died([A, B], NOW)
    assert hunt.groups == [[C, D], [B], [A]]


def test_a_death_with_nothing_in_flight_changes_nothing() -> None:
    """An engine that dies of itself accuses nobody."""
    hunt = Bisection([[A]])
    assert hunt.died([], NOW) == {}
    assert hunt.groups == [[A]]


def test_suspects_that_are_gone_are_dropped() -> None:
    """After a restart only requests that are still open are hunted."""
    hunt = Bisection([[A, B], [C]], {C: 1, D: 2}, [D])
    hunt.keep({B})
    assert (hunt.groups, hunt.deaths, hunt.put_off) == ([[B]], {}, [])
