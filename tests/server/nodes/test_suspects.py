"""Who broke the nodes: a little world of innocent and deadly subjects, driven by chance."""

import random
from collections.abc import Iterator

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.server.nodes.suspects import Suspects

LIMIT = 2


def newest_first_groups(n: int) -> list[list[int]]:
    """What is tried, trial by trial, after `n` subjects were with two nodes that broke; nobody is
    deadly."""
    suspects: Suspects[int] = Suspects(LIMIT)
    for _ in range(LIMIT):
        for subject in range(n):
            suspects.sent(subject, first=True)
        assert suspects.died() is None
    groups = []
    while group := suspects.release():
        groups.append(group)
        assert not suspects.release(), "one trial at a time"
        for subject in group:
            suspects.sent(subject)
            suspects.progressed(subject)
    assert not suspects.trying
    return groups


def test_suspects_are_tried_newest_first_in_growing_groups() -> None:
    assert newest_first_groups(8) == [[7], [5, 6], [1, 2, 3, 4], [0]]


def test_what_was_with_one_dead_node_only_is_not_held_back() -> None:
    suspects: Suspects[str] = Suspects(LIMIT)
    suspects.sent("a")
    assert suspects.died() is None
    assert not suspects.holds("a")
    suspects.sent("a", first=True)
    suspects.sent("b")
    suspects.died()
    assert suspects.holds("a")
    assert not suspects.holds("b")


def test_progress_forgives() -> None:
    suspects: Suspects[str] = Suspects(LIMIT)
    for _ in range(5):
        suspects.sent("a")
        suspects.progressed("a")
        assert suspects.died() is None
    assert not suspects.trying


def test_trials_wait_for_those_who_were_there_before() -> None:
    suspects: Suspects[str] = Suspects(1)
    suspects.sent("a")
    suspects.died()
    suspects.sent("b", first=True)
    assert suspects.waited_for
    assert not suspects.release()
    suspects.progressed("b")
    assert suspects.release() == ["a"]


def test_nobody_is_blamed_for_a_node_that_read_nothing() -> None:
    suspects: Suspects[str] = Suspects(1)
    suspects.sent("a")
    suspects.died()
    for _ in range(3):
        assert suspects.release() == ["a"]
        suspects.sent("a")
        suspects.spared()
        assert suspects.holds("a")


def test_the_only_candidate_of_a_death_during_trials_is_guilty_and_gone() -> None:
    suspects: Suspects[str] = Suspects(1)
    suspects.sent("a")
    suspects.died()
    suspects.sent(*suspects.release())
    assert suspects.died() == "a"
    assert not suspects.trying


class World:
    """Nodes that die when a deadly subject is done with its waiting; innocents get somewhere when they
    are."""

    def __init__(self, chance: random.Random, deadly: set[int]) -> None:
        self.chance = chance
        self.deadly = deadly
        self.suspects: Suspects[int] = Suspects(LIMIT)
        self.alive: list[int] = []
        self.proven: set[int] = set()
        self.left: dict[int, int] = {}
        """Turns until the node comes to each."""
        self.guilty: list[int] = []
        self.n_deaths = 0

    def arrive(self, subject: int) -> None:
        self.alive.append(subject)
        if self.suspects.arrive(subject):
            self.send(subject)
        self.go_on()

    def send(self, subject: int, *, first: bool = False) -> None:
        self.suspects.sent(subject, first=first)
        self.left[subject] = self.chance.randrange(5)

    def go_on(self) -> None:
        while group := self.suspects.release():
            for subject in group:
                self.send(subject)

    def turn(self) -> None:
        for subject in list(self.left):
            if self.left[subject]:
                self.left[subject] -= 1
            elif subject in self.deadly:
                self.die()
                return
            else:
                del self.left[subject]
                self.proven.add(subject)
                self.suspects.progressed(subject)
                if self.chance.random() < 0.5:
                    self.alive.remove(subject)
                    self.suspects.forget(subject)
        self.go_on()

    def die(self) -> None:
        self.n_deaths += 1
        self.left.clear()
        guilty = self.suspects.died()
        if guilty is not None:
            self.guilty.append(guilty)
            self.alive.remove(guilty)
        for subject in self.alive:
            if not self.suspects.holds(subject):
                self.send(subject, first=True)
        self.go_on()

    def external_kill(self) -> None:
        """The machine's fault, or an operator's: nobody's here."""
        self.die()


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 40),
    n_deadly=st.integers(0, 4),
    arrive_together=st.booleans(),
)
@example(seed=0, n=40, n_deadly=1, arrive_together=True)
def test_the_deadly_are_found_and_nobody_else(
    seed: int, n: int, n_deadly: int, arrive_together: bool
) -> None:
    chance = random.Random(seed)
    deadly = set(chance.sample(range(n), min(n, n_deadly)))
    world = World(chance, deadly)
    arrivals: Iterator[int] = iter(range(n))
    if arrive_together:
        for subject in arrivals:
            world.arrive(subject)
    for _ in range(3000):
        if chance.random() < 0.3:
            subject = next(arrivals, None)
            if subject is not None:
                world.arrive(subject)
        world.turn()
    assert sorted(world.guilty) == sorted(deadly), "everybody guilty is found, and nobody innocent"
    assert world.proven == set(range(n)) - deadly, "everybody innocent gets somewhere"
    assert not world.suspects.trying
    # A death each for two suspicions, then halving among n, then the one that proves it; arrivals may cost a
    # few more.
    assert world.n_deaths <= len(deadly) * (LIMIT + 4 + 2 * n.bit_length())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_arrivals_without_end_do_not_hide_the_deadly(seed: int) -> None:
    """There is always somebody new who may have been it, until arrivals wait."""
    world = World(random.Random(seed), {0})
    for subject in range(400):
        world.arrive(subject)
        world.turn()
        if world.guilty:
            break
    assert world.guilty == [0]
    assert world.n_deaths <= 12


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 20), n_kills=st.integers(1, 3))
def test_kills_from_outside_cost_time_only(seed: int, n: int, n_kills: int) -> None:
    """As long as fewer come in a row than make a suspect and break its trial."""
    chance = random.Random(seed)
    world = World(chance, set())
    for subject in range(n):
        world.arrive(subject)
    for _ in range(n_kills):
        world.external_kill()
        if n_kills > LIMIT:
            for _ in range(6 * n):
                world.turn()
    for _ in range(1000):
        world.turn()
    assert world.proven == set(range(n))
    assert not world.guilty
