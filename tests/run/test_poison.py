"""The hunt: bisection finds the poison requests and sets no other request aside."""

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
    """An engine with poison requests, and a runner that follows the hunt.

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
        """Return the requests without an outcome."""
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
        """Return the requests that are sent to the engine together."""
        others = [s for s in self.open() if s not in self.hunt.put_off]
        if not self.hunt and not others:
            self.hunt.recall(JOB)
        return list((self.hunt.group or others)[: self.window])

    def die(self, in_flight: list[Suspect]) -> None:
        """Report a death to the hunt, and perhaps restart the daemon after it."""
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
def test_all_poison_is_found_and_everything_else_answered(simulation: Simulation) -> None:
    """For any order, window and restarts, only the poison requests are set aside."""
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
    """The engine starts at most 2·log2(window) + 4 times for each poison request."""
    simulation.finish()
    bound = 2 * math.log2(max(simulation.window, 1)) + 4
    assert simulation.deaths <= bound * max(len(simulation.poison), 1)


@given(simulations())
def test_a_restart_of_the_daemon_changes_nothing(simulation: Simulation) -> None:
    """A hunt that is stored and loaded after each death takes the same steps."""
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


def test_an_empty_hunt_is_stored_as_nothing() -> None:
    """A hunt without suspects needs no record."""
    assert Bisection().dump() is None
    assert not Bisection.load(None)
    assert Bisection().group == []


def test_a_hunt_of_an_older_version_goes_on() -> None:
    """A record of a version that postponed no suspects is read with none postponed."""
    hunt = Bisection.load(
        b'{"groups":[[["job",1],["job",2]],[["job",3]]],"deaths":[[["job",3],1]]}'
    )
    assert hunt.groups == [[("job", 1), ("job", 2)], [("job", 3)]]
    assert (hunt.deaths, hunt.put_off, hunt.chances) == ({("job", 3): 1}, [], [])


def die_alone(
    hunt: Bisection, suspect: Suspect, times: int, now: float = NOW
) -> dict[Suspect, int]:
    """Try a suspect alone and let the engine die each time; return what is found poison."""
    found: dict[Suspect, int] = {}
    for _ in range(times):
        assert found == {}
        hunt.recall(JOB)
        found = hunt.died([suspect], now)
    return found


def test_enough_deaths_alone_prove_poison() -> None:
    """After a wide window DEATHS_ALONE are needed, and then the hunt is empty."""
    hunt = Bisection()
    hunt.died([(JOB, line) for line in range(1, 65)], NOW)
    hunt.groups = [[A]]
    assert die_alone(hunt, A, DEATHS_ALONE) == {A: DEATHS_ALONE}
    assert (hunt.groups, hunt.put_off, hunt.deaths) == ([], [], {})


def test_a_window_of_one_allows_three_deaths() -> None:
    """The first engine start and three restarts are within the four allowed."""
    assert die_alone(Bisection(), A, 3) == {A: 3}


def test_a_suspect_that_killed_alone_waits_until_the_others_are_done() -> None:
    """The death may have been chance, so the suspect is put off and the other one tried."""
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


def test_suspects_that_were_put_off_are_tried_together() -> None:
    """If all of their deaths were chance, one trial is enough to answer them."""
    hunt = Bisection(deaths={A: 1, B: 1, C: 1}, put_off=[A, B, C])
    hunt.recall(JOB)
    assert hunt.group == [A, B, C]
    hunt.died([A, B, C], NOW)
    assert hunt.groups == [[C], [A, B]]


def test_suspects_that_killed_alone_again_are_tried_alone() -> None:
    """Two poison requests are not tried together a second time."""
    hunt = Bisection(deaths={A: 2, B: 1, C: 3}, put_off=[A, B, C])
    hunt.recall(JOB)
    assert (hunt.groups, hunt.put_off) == ([[A], [C], [B]], [])


def test_the_suspects_of_a_paused_job_wait() -> None:
    """They leave their groups, and are tried once the job is recalled."""
    other = ("another", 1)
    hunt = Bisection([[A, other], [B, C]], {D: 1}, [D])
    hunt.postpone(JOB)
    assert (hunt.groups, hunt.put_off) == ([[other]], [A, B, C, D])
    hunt.recall(JOB)
    assert hunt.group == [A, B, C, D]


def test_a_death_that_was_chance_makes_the_next_ones_doubtful() -> None:
    """A request that killed alone and is then answered shows that the engine dies by itself."""
    hunt = Bisection()
    die_alone(hunt, A, 1)
    hunt.recall(JOB)
    hunt.answered(A, NOW)
    assert hunt.chances == [NOW]
    assert die_alone(hunt, B, 5) == {B: 5}


def test_a_whole_group_that_was_answered_shows_a_chance_too() -> None:
    """If all of a group are answered, the engine that died under them did so by itself."""
    hunt = Bisection()
    hunt.died([A, B], NOW)
    hunt.answered(A, NOW)
    assert hunt.chances == []
    hunt.answered(B, NOW)
    assert hunt.chances == [NOW]


def test_the_answers_beside_a_poison_request_show_no_chance() -> None:
    """An answered request beside the one to blame proves nothing about the engine."""
    hunt = Bisection()
    hunt.died([A, B], NOW)
    hunt.died([A], NOW)
    hunt.answered(B, NOW)
    assert hunt.chances == []


def test_many_chances_ask_for_no_more_than_a_limit() -> None:
    """Poison is found even if the engine often dies by chance."""
    hunt = Bisection(chances=[NOW] * 9)
    assert die_alone(hunt, A, MOST_DEATHS_ALONE) == {A: MOST_DEATHS_ALONE}


def test_a_chance_is_forgotten_with_time() -> None:
    """Chance deaths of hours ago do not raise the number of deaths needed."""
    hunt = Bisection(chances=[NOW] * 9)
    assert die_alone(hunt, A, 3, NOW + CHANCE_S) == {A: 3}


def test_a_request_that_is_gone_proves_nothing() -> None:
    """A cancelled request was not answered, so its deaths do not count as chance."""
    hunt = Bisection(deaths={A: 2}, put_off=[A])
    hunt.forget(A)
    assert hunt == Bisection()


def test_suspects_that_had_not_started_stay_suspects() -> None:
    """If the engine dies before the whole group was sent, the rest is tried later."""
    hunt = Bisection([[A, B, C, D]])
    hunt.died([A, B], NOW)
    assert hunt.groups == [[C, D], [B], [A]]


def test_a_death_with_nothing_in_flight_changes_nothing() -> None:
    """The death of an idle engine makes no request a suspect."""
    hunt = Bisection([[A]])
    assert hunt.died([], NOW) == {}
    assert hunt.groups == [[A]]


def test_suspects_that_are_gone_are_dropped() -> None:
    """After a restart only requests that are still open are suspects."""
    hunt = Bisection([[A, B], [C]], {C: 1, D: 2}, [D])
    hunt.keep({B})
    assert (hunt.groups, hunt.deaths, hunt.put_off) == ([[B]], {}, [])
