"""The waits between channels: enough of them, none too many, and none forgotten late.

Random programs of operations on random cells of memory are carried out in random orders, any that the
channels (each in its own order) and the waits permit. Whatever the order, an operation must come after every
earlier one that it conflicts with.
"""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.plan import Channel
from tokenmux.device.cuda.ordering import NOWHERE, Ordering, Places, merged

N_CELLS = 6


@dataclass(frozen=True)
class Action:
    """One operation of a program."""

    channel: Channel
    reads: frozenset[int]
    writes: frozenset[int]

    def conflicts(self, other: "Action") -> bool:
        touched = self.reads | self.writes
        return bool(self.writes & (other.reads | other.writes) or other.writes & touched)


@dataclass
class Program:
    """Actions in the order of their starting, and for each the indices of those that it waits for."""

    actions: list[Action]
    waits: list[list[int]] = field(default_factory=list)

    def before(self, index: int) -> list[int]:
        """What must have run for this one to run: its predecessor on its channel, and what it waits for."""
        channel = self.actions[index].channel
        earlier = [i for i in range(index) if self.actions[i].channel is channel]
        return [*earlier[-1:], *self.waits[index]]


def places(cells: frozenset[int]) -> Places:
    """Cells 0 to 2 of one space, the others of a second one."""
    both = {0: cells & {0, 1, 2}, 1: cells & {3, 4, 5}}
    return {space: merged((c * 10, c * 10 + 10) for c in some) for space, some in both.items() if some}


def planned(actions: list[Action]) -> Program:
    ordering: Ordering[int] = Ordering()
    program = Program(actions)
    for index, action in enumerate(actions):
        _, after = ordering.enter(action.channel, index, places(action.reads), places(action.writes))
        program.waits.append(list(after))
    return program


cells = st.frozensets(st.integers(0, N_CELLS - 1), max_size=3)
actions = st.lists(st.builds(Action, st.sampled_from(Channel), cells, cells), max_size=14)


def run(program: Program, random: Random) -> list[int]:
    """One permitted order of the actions."""
    left = set(range(len(program.actions)))
    order = []
    while left:
        ready = sorted(i for i in left if not left.intersection(program.before(i)))
        order.append(random.choice(ready))
        left.remove(order[-1])
    return order


def ancestors(program: Program, index: int) -> set[int]:
    found: set[int] = set()
    open_ = [index]
    while open_:
        for earlier in program.before(open_.pop()):
            if earlier not in found:
                found.add(earlier)
                open_.append(earlier)
    return found


@given(actions, st.integers(0, 1 << 30))
def test_every_read_sees_the_last_write_in_whatever_order_it_runs(drawn: list[Action], seed: int) -> None:
    program = planned(drawn)
    memory: dict[int, int] = {}
    seen: dict[int, dict[int, int | None]] = {}
    for index in run(program, Random(seed)):
        seen[index] = {cell: memory.get(cell) for cell in drawn[index].reads}
        memory.update(dict.fromkeys(drawn[index].writes, index))
    in_order: dict[int, int] = {}
    for index, action in enumerate(drawn):
        assert seen[index] == {cell: in_order.get(cell) for cell in action.reads}
        in_order.update(dict.fromkeys(action.writes, index))
    assert memory == in_order


@given(actions)
def test_conflicts_are_ordered_and_without_any_one_wait_they_would_not_be(drawn: list[Action]) -> None:
    program = planned(drawn)

    def is_ordered() -> bool:
        return all(
            earlier in ancestors(program, later)
            for later in range(len(drawn))
            for earlier in range(later)
            if drawn[earlier].conflicts(drawn[later])
        )

    assert is_ordered()
    for waits in program.waits:
        assert len(waits) < len(Channel)
        for wait in list(waits):
            waits.remove(wait)
            assert not is_ordered()
            waits.append(wait)


@given(actions)
def test_what_conflicts_with_nothing_waits_for_nothing(drawn: list[Action]) -> None:
    program = planned(drawn)
    for later, waits in enumerate(program.waits):
        for earlier in waits:
            assert drawn[earlier].channel is not drawn[later].channel
            assert drawn[earlier].conflicts(drawn[later])


@given(actions, st.data())
def test_what_has_ended_is_forgotten(drawn: list[Action], data: st.DataObject) -> None:
    ordering: Ordering[int] = Ordering()
    under_way: dict[int, tuple[Channel, int]] = {}
    for index, action in enumerate(drawn):
        for ended in (
            data.draw(st.lists(st.sampled_from(sorted(under_way)), unique=True)) if under_way else []
        ):
            ordering.leave(*under_way.pop(ended))
        number, after = ordering.enter(action.channel, index, places(action.reads), places(action.writes))
        assert set(after) <= under_way.keys()
        under_way[index] = action.channel, number
        assert len(ordering) == len(under_way)


def test_a_copy_of_one_model_runs_beside_the_steps_of_another() -> None:
    ordering: Ordering[str] = Ordering()
    weights_a, weights_b, kv = (0, 100), (100, 300), (500, 510)
    _, after = ordering.enter(Channel.COPY_IN, "copy b", {"image b": ((0, 200),)}, {"arena": (weights_b,)})
    assert after == ()
    _, after = ordering.enter(Channel.COMPUTE, "step a", {"arena": (weights_a, kv)}, {"arena": (kv,)})
    assert after == ()
    _, after = ordering.enter(Channel.COMPUTE, "step b", {"arena": (weights_b,)}, NOWHERE)
    assert after == ("copy b",)
    _, after = ordering.enter(Channel.COPY_OUT, "page out a", {"arena": (kv,)}, {"host": ((0, 10),)})
    assert after == ("step a",)
    _, after = ordering.enter(Channel.COPY_IN, "copy c over a", NOWHERE, {"arena": ((50, 100), (500, 510))})
    assert after == ("page out a",), "which comes after the step of a"


def test_a_copy_over_weights_waits_for_the_step_that_reads_them() -> None:
    ordering: Ordering[str] = Ordering()
    ordering.enter(Channel.COMPUTE, "step a", {"arena": ((0, 100),)}, NOWHERE)
    _, after = ordering.enter(Channel.COPY_IN, "copy", NOWHERE, {"arena": ((99, 200),)})
    assert after == ("step a",)
    _, after = ordering.enter(Channel.COPY_OUT, "beside", NOWHERE, {"arena": ((200, 300),)})
    assert after == ()


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], ()),
        ([(5, 7), (0, 2)], ((0, 2), (5, 7))),
        ([(0, 2), (2, 4), (3, 9)], ((0, 9),)),
        ([(0, 9), (3, 4)], ((0, 9),)),
    ],
)
def test_spans_are_merged(spans: list[tuple[int, int]], expected: tuple[tuple[int, int], ...]) -> None:
    assert merged(spans) == expected
