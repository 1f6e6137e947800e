"""Keys from the hashes of a trace: what they find is shared is shared, and never more."""

from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import PrefixKey
from tokenmux.workload.prompt_hashes import hashed_prefix
from tokenmux.workload.trace import TraceRequest, arrivals

MODEL = ModelId("m")


def ids_of(prompt: list[int], hash_tokens: int) -> list[int]:
    """A number for each block that stands for all tokens up to its end, as Mooncake's do."""
    ends = range(hash_tokens, len(prompt) + hash_tokens, hash_tokens)
    return [hash(tuple(prompt[:end])) % 2**64 for end in ends]


def n_alike(one: tuple[PrefixKey, ...], other: tuple[PrefixKey, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))  # fmt: skip


@given(
    n_common=st.integers(0, 60),
    n_one=st.integers(0, 40),
    n_other=st.integers(0, 40),
    hash_tokens=st.integers(1, 20),
    cell=st.integers(1, 20),
)
def test_a_cell_is_known_if_all_blocks_that_cover_it_are_equal(
    n_common: int, n_one: int, n_other: int, hash_tokens: int, cell: int
) -> None:
    prompts = [[0] * n_common + [1] * n_one, [0] * n_common + [2] * n_other]
    hashes = [ids_of(prompt, hash_tokens) for prompt in prompts]
    keys = [
        hashed_prefix(MODEL, (), ids, hash_tokens, len(prompt), cell).keys
        for ids, prompt in zip(hashes, prompts, strict=True)
    ]
    assert [len(found) for found in keys] == [len(prompt) // cell for prompt in prompts]
    n_same_blocks = next(
        (i for i, (a, b) in enumerate(zip(*hashes, strict=False)) if a != b), min(map(len, hashes))
    )
    covered = n_same_blocks * hash_tokens // cell
    assert n_alike(*keys) == min(covered, *(len(found) for found in keys))
    assert n_alike(*keys) * cell <= n_common or not (n_one and n_other)


def test_cells_within_a_block_differ_and_so_do_models_and_tenants() -> None:
    keys = hashed_prefix(MODEL, ("web",), [7, 9], 512, 1024, 128).keys
    assert len(set(keys)) == len(keys) == 8
    assert hashed_prefix(MODEL, ("bank",), [7, 9], 512, 1024, 128).keys[0] not in keys
    assert hashed_prefix(ModelId("n"), ("web",), [7, 9], 512, 1024, 128).keys[0] not in keys


def test_blocks_without_a_number_have_no_keys() -> None:
    assert len(hashed_prefix(MODEL, (), [7], 512, 2000, 128).keys) == 4
    assert hashed_prefix(MODEL, (), [], 512, 2000, 128).keys == ()


def test_arrivals_have_keys_only_where_a_pool_has_a_cache() -> None:
    lines = [
        TraceRequest(0.0, "m", 1000, 1, hash_ids=(5, 6)),
        TraceRequest(0.0, "m", 1000, 1, hash_ids=(5, 7)),
        TraceRequest(0.0, "m", 1000, 1, tenant="other", hash_ids=(5, 6)),
        TraceRequest(0.0, "m", 1000, 1),
        TraceRequest(0.0, "m", 200, 1, hash_ids=(5,)),
    ]
    context = {MODEL: 4096}
    assert all(arrival.request.prefix is None for arrival in arrivals(lines, context))
    found = [arrival.request.prefix for arrival in arrivals(lines, context, cell_tokens=256)]
    one, two, other = [prefix.keys for prefix in found if prefix is not None]
    assert found[3:] == [None, None], "without hashes, and shorter than a cell"
    assert len(one) == 3
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert not set(one) & set(other)
