"""What the benchmark of the pool counts, from times that are made up."""

from benchmarks.over_runner import IN_A_ROW, fastest_s
from benchmarks.streams import Seen, SeenTogether


def test_the_fastest_steps_in_a_row_are_found_among_slow_ones() -> None:
    slow = [2.0 * i for i in range(IN_A_ROW)]
    fast = [slow[-1] + i for i in range(1, IN_A_ROW + 1)]
    assert fastest_s([*slow, *fast, fast[-1] + 5.0]) == IN_A_ROW


def test_a_full_batch_lasts_from_the_last_beginning_to_the_first_end() -> None:
    early = Seen([1, 1, 1], [1.0, 2.0, 3.0])
    late = Seen([2, 2, 2, 2], [1.5, 2.5, 3.0, 3.5])
    seen = SeenTogether(0.5, (early, late))
    assert seen.full_batch_s == [1.5, 2.5, 3.0]
    assert (seen.n_tokens, seen.whole_s) == (7, 3.0)
