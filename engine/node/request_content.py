"""The content of a request, which the scheduler never sees: its token ids and how to draw more."""

from dataclasses import dataclass

from tokenmux.core.sampling import PromptTelling
from tokenmux.messages.commands import Submit


@dataclass(slots=True)
class Content:
    """`token_ids` is the prompt and everything drawn since. `prompt_tokens` are the distinct tokens of the
    prompt, if the request has rules that look at them. Of the first `n_told` tokens of the prompt all is told
    that can be: nothing precedes the first one."""

    submit: Submit
    token_ids: list[int]
    prompt_tokens: tuple[int, ...] = ()
    n_told: int = 1

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
