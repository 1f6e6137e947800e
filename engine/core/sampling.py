"""How the tokens of a request are drawn, and what is told about them.

These are named tuples, since a request's sampling travels with every step: msgspec encodes a named tuple as
an array without names, half as long as a dataclass.
"""

from typing import NamedTuple

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: dividing logits by less may overflow, and a draw would pick
the likeliest token anyway."""


_BITS = 2**64 - 1


class LogitRules(NamedTuple):
    """What changes a request's logits before a token is drawn, in this order. Definitions are vLLM's.

    `forbidden` are token ids, each sequence never completed in the output: its last token cannot be drawn
    after the others. `bias` is added to the logits of its token ids. A logit above 0 of a token that occurs
    in the prompt or the output is divided by `repetition_penalty`, one below 0 is multiplied by it. Then
    logits of output tokens decrease by `frequency_penalty` for each occurrence, and by `presence_penalty`
    once.
    """

    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    forbidden: tuple[tuple[int, ...], ...] = ()

    @property
    def look_at_prompt(self) -> bool:
        """True if logits depend on the tokens of the prompt."""
        return self.repetition_penalty != 1.0

    @property
    def look_at_output(self) -> bool:
        """True if logits depend on the tokens drawn before."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or any(len(sequence) > 1 for sequence in self.forbidden)
        )


NO_RULES = LogitRules()


class Sampling(NamedTuple):
    """How tokens are drawn. Temperature 0 is greedy. A draw is a pure function of (seed, position).

    `rules` change logits first; None: no rules. `n_likeliest` asks for the log-probability of each token, and
    for those of that many likeliest ones; None asks for none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    rules: LogitRules | None = None
    n_likeliest: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice number `choice` of a request with `seed`: for choice 0 the same, for choice i output
    number i of the generator SplitMix64 that begins at `seed`.

    So choice i has the tokens of a request of its own with this seed, and requests with neighbouring seeds
    share no choice.

    >>> choice_seed(7, 0), choice_seed(0, 1)
    (7, 16294208416658607535)
    """
    if not choice:
        return seed
    mixed = (seed + choice * 0x9E3779B97F4A7C15) & _BITS
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _BITS
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _BITS
    return mixed ^ mixed >> 31


class PromptTelling(NamedTuple):
    """What a step is to tell of a prompt: the log-probabilities of `targets`, the tokens after the positions
    from `first` on, and those of the `n_likeliest` tokens there."""

    first: int
    targets: tuple[int, ...]
    n_likeliest: int


class LogProbabilities(NamedTuple):
    """Log-probabilities where a token was drawn, or stands in a prompt: that of the `drawn` token, and those
    of the `likeliest` tokens, largest first, the lower token id first if equal.

    They are those of the model: before rules, temperature and cuts.
    """

    drawn: float
    likeliest: tuple[tuple[int, float], ...] = ()
