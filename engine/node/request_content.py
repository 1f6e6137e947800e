"""The content of a request, which the scheduler never sees: its token ids and how to draw more."""

from dataclasses import dataclass

from tokenmux.core.pooling import pooled_positions
from tokenmux.core.sampling import PromptTelling
from tokenmux.messages.commands import Submit


@dataclass(slots=True)
class Content:
    """`token_ids` is the prompt and everything drawn since. `prompt_tokens` are the distinct tokens of the
    prompt, if the request has rules that look at them. Of the first `n_told` tokens of the prompt all is told
    that can be: nothing precedes the first one. `n_pooled` says the same of hidden states: sums of
    those before this position are told, or not wanted."""

    submit: Submit
    token_ids: list[int]
    prompt_tokens: tuple[int, ...] = ()
    n_told: int = 1
    n_pooled: int = 0

    @classmethod
    def of(cls, submit: Submit) -> "Content":
        rules = submit.sampling.rules
        looks = rules is not None and rules.look_at_prompt
        return cls(submit, [*submit.prompt, *submit.delivered], tuple(set(submit.prompt)) if looks else ())

    def telling(self, start: int, end: int) -> PromptTelling | None:
        """What a step over positions `[start, end)` is to tell of the prompt. Positions that are computed
        again, after KV was dropped, have been told."""
        n_likeliest = self.submit.n_prompt_likeliest
        if n_likeliest is None:
            return None
        first, last = max(start, self.n_told - 1), min(end, self.submit.request.n_prompt - 1)
        if first >= last:
            return None
        return PromptTelling(first, tuple(self.token_ids[first + 1 : last + 1]), n_likeliest)

    def pooled(self, start: int, end: int) -> tuple[int, int] | None:
        """The positions of which a step over `[start, end)` is to tell hidden states: none twice."""
        if self.submit.pooling is None:
            return None
        first, last = pooled_positions(self.submit.pooling, self.submit.request.n_prompt)
        first, last = max(first, start, self.n_pooled), min(last, end)
        return (first, last) if first < last else None

    def draws(self, end: int) -> bool:
        """True if a step up to position `end` draws a token."""
        return end == len(self.token_ids) and self.submit.draws
