"""A request that is sent again with the tokens that its client holds goes on where it stood.

Draws depend on prompt, parameters, seed and position alone, so that any server with the model can go on. The
node treats those tokens as after the loss of a device; here the text follows: the detokenizer is given what
it was given before, so that no character comes twice or is lost, and stop strings across the seam are found.
"""

import asyncio
from collections.abc import Collection, Sequence

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelFacts
from tokenmux.core.sampling import GREEDY_BELOW
from tokenmux.server.front.counts import check_token_ids
from tokenmux.server.front.generation import Ask
from tokenmux.server.front.model_text import OutputText

TOKENS_PER_TURN = 500
"""About 2 ms of detokenizing: the event loop turns in between."""


def check_delivered(ask: Ask, facts: ModelFacts) -> None:
    """Raise InvalidRequest if the request cannot go on after the tokens that its client holds."""
    if not ask.delivered:
        return
    if len(ask.delivered) >= facts.max_context:
        raise InvalidRequest(
            f"delivered has {len(ask.delivered)} tokens, but {facts.id} has a context of "
            f"{facts.max_context}, prompt included: send the tokens of one output",
            field="delivered",
        )
    check_token_ids("delivered", ask.delivered, facts, field="delivered")
    if ask.seed is None and ask.temperature >= GREEDY_BELOW:
        raise InvalidRequest(
            "delivered goes on with the same draws, which needs the seed: give the one that prompt_info of "
            "the first answer told",
            field="seed",
        )


def check_incomplete(delivered: Sequence[int], max_tokens: int) -> None:
    """Raise InvalidRequest if the client holds all tokens that there may be."""
    if len(delivered) >= max_tokens:
        raise InvalidRequest(
            f"delivered has {len(delivered)} tokens, and max_tokens is {max_tokens}: the output is complete; "
            "to go on, raise max_tokens",
            field="delivered",
        )


async def replay(
    delivered: Sequence[int], text: OutputText, stop_token_ids: Collection[int], min_tokens: int
) -> None:
    """Bring the text of an output to where it stood after the tokens that its client holds. Raises
    InvalidRequest if one of them ends the output."""
    for index, token in enumerate(delivered):
        if index % TOKENS_PER_TURN == TOKENS_PER_TURN - 1:
            await asyncio.sleep(0)
        if token in stop_token_ids and index + 1 >= min_tokens:
            raise _complete(index, f"token {token} ends it")
        text.push((token,))
        if text.stopped is not None:
            raise _complete(index, f"the stop string {text.stopped!r} ends it")


def _complete(index: int, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"delivered is a complete output: {why} at index {index}; there is nothing to go on with, unless you "
        "send fewer tokens or stop at something else",
        field="delivered",
    )
