"""Masks meet rules, cuts and draws: a token outside a mask is never drawn, on a processor or with kernels."""

import numpy as np
import pytest
import torch

from tokenmux.core.sampling import LogitRules, Sampling
from tokenmux.models.sampling.draw import Draw, draw_rows
from tokenmux.models.sampling.masks import TokenBits, without
from tokenmux.models.sampling.past_tokens import PastTokens

N = 100
LOGITS = torch.randn(1, N, generator=torch.Generator().manual_seed(3))
SAMPLINGS = (
    Sampling(),
    Sampling(1.0, seed=4),
    Sampling(1.5, top_k=50, seed=5),
    Sampling(1.0, top_p=0.5, seed=6),
    Sampling(1.0, min_p=0.5, seed=7),
    Sampling(1.0, seed=8, rules=LogitRules(1.3, 0.5, 0.5, ((3, 50.0), (20, 90.0)), ((7,), (9, 11)))),
)


def mask_of(*tokens: int) -> bytes:
    bits = np.zeros(N, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def tokens_of(bits: TokenBits | None) -> set[int]:
    assert bits is not None
    return {int(token) for token in np.flatnonzero(np.unpackbits(bits, bitorder="little"))}


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_only_allowed_tokens_are_drawn(sampling: Sampling) -> None:
    allowed = {2, 7, 11, 40, 99}
    past = PastTokens((2,), (9,))
    seen = set()
    for position in range(200):
        draw = Draw(sampling, position, (40,), past).within(mask_of(*allowed))
        (token,) = draw_rows(LOGITS, [draw])
        seen.add(token)
    assert seen <= allowed - {40}
    if sampling.rules is not None:
        assert not seen & {7, 11}  # forbidden, and forbidden after 9


def test_what_forbids_all_that_a_grammar_allows_gives_way() -> None:
    sampling = Sampling(rules=LogitRules(forbidden=((5,),)))
    assert tokens_of(Draw(sampling, 0, (6,)).within(mask_of(5, 6)).allowed) == {5, 6}
    assert tokens_of(Draw(sampling, 0, (6,)).within(mask_of(5, 6, 8)).allowed) == {8}
    assert draw_rows(LOGITS, [Draw(sampling, 0, (6,)).within(mask_of(6))]) == [6]


def test_a_row_without_a_mask_is_drawn_as_ever() -> None:
    two = LOGITS.repeat(2, 1)
    plain = Draw(Sampling(1.0, seed=4), 9)
    alone = draw_rows(LOGITS, [plain])
    assert draw_rows(two, [plain.within(mask_of(1, 2)), plain])[1:] == alone


def test_tokens_beyond_a_mask_are_ignored() -> None:
    assert tokens_of(without(mask_of(1, 99), {99, 100_000, -1})) == {1}
