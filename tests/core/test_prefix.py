"""Keys of prompts' beginnings: equal exactly where everything up to there is equal."""

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import prefix_keys, prefix_seed

SEED = prefix_seed(ModelId("m"), ("tenant",))
PROMPTS = st.lists(st.integers(0, 2), max_size=20)


@given(one=PROMPTS, other=PROMPTS, cell=st.integers(1, 5))
def test_keys_are_equal_as_far_as_whole_cells_are(one: list[int], other: list[int], cell: int) -> None:
    n_alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
    found, others = prefix_keys(SEED, one, cell), prefix_keys(SEED, other, cell)
    assert len(found) == len(one) // cell
    assert [a == b for a, b in zip(found, others, strict=False)] == [
        (place + 1) * cell <= n_alike for place in range(min(len(found), len(others)))
    ]


def test_large_token_ids_count() -> None:
    assert prefix_keys(SEED, [1 << 40], 1) != prefix_keys(SEED, [0], 1)
