"""A request that is sent again with the tokens that its client holds goes on where it stood.

Draws depend on prompt, parameters, seed and position alone, so that any server with the model can go on. The
node treats those tokens as after the loss of a device; here the text follows: the detokenizer is given what
it was given before, so that no character comes twice or is lost, and stop strings across the seam are found.
"""

import asyncio

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelFacts
from tokenmux.core.sampling import GREEDY_BELOW
from tokenmux.server.front.call import AdmittedChoice
from tokenmux.server.front.counts import check_token_ids
from tokenmux.server.front.generation import Ask

TOKENS_PER_TURN = 500
"""About 2 ms of detokenizing: the event loop turns in between."""


def check_delivered(ask: Ask, facts: ModelFacts) -> None:
    """Raise InvalidRequest if the request cannot go on after the tokens that its client holds."""
    if not ask.delivered:
        return
    if len(ask.delivered) != ask.n:
        raise InvalidRequest(
            f"delivered has {len(ask.delivered)} entries, and there are {ask.n} choices: give one for each",
            field="delivered",
        )
    if all(held.is_complete for held in ask.delivered):
        raise InvalidRequest("delivered says that all is complete: there is nothing to do", field="delivered")
    for held in ask.delivered:
        if len(held.token_ids) >= facts.max_context:
            raise InvalidRequest(
                f"delivered has {len(held.token_ids)} tokens, but {facts.id} has a context of "
                f"{facts.max_context}, prompt included: send the tokens of one output",
                field="delivered",
            )
        check_token_ids("delivered", held.token_ids, facts, field="delivered")
    if ask.seed is None and ask.temperature >= GREEDY_BELOW:
        raise InvalidRequest(
            "delivered goes on with the same draws, which needs the seed: give the one that prompt_info of "
            "the first answer told",
            field="seed",
        )


async def retrace(choice: AdmittedChoice) -> None:
    """Bring the text of an output to where it stood after the tokens that its client holds. Raises
    InvalidRequest if they are a complete output."""
    submit, text = choice.submit, choice.text
    delivered, max_tokens = submit.delivered, submit.request.max_tokens if submit.draws else 0
    if delivered and len(delivered) >= max_tokens:
        raise InvalidRequest(
            f"delivered has {len(delivered)} tokens, and max_tokens is {max_tokens}: the output is complete; "
            "to go on, raise max_tokens",
            field="delivered",
        )
    for index, token in enumerate(delivered):
        if index % TOKENS_PER_TURN == TOKENS_PER_TURN - 1:
            await asyncio.sleep(0)
        if token in submit.stop_token_ids and index + 1 >= submit.min_tokens:
            raise _complete(index, f"token {token} ends it")
        said = text.push((token,))
        if choice.calls is not None:
            choice.calls.push(said)
        if text.stopped is not None:
            raise _complete(index, f"the stop string {text.stopped!r} ends it")


def _complete(index: int, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"delivered is a complete output: {why} at index {index}; mark it as such, or send fewer tokens",
        field="delivered",
    )
