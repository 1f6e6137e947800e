"""The content of a request, which the scheduler never sees: its token ids and how to draw more."""

from dataclasses import dataclass

from tokenmux.messages.commands import Submit


@dataclass(slots=True)
class Content:
    """`token_ids` is the prompt and everything drawn since. `prompt_tokens` are the distinct tokens of the
    prompt, if the request has rules that look at them."""

    submit: Submit
    token_ids: list[int]
    prompt_tokens: tuple[int, ...] = ()

    @classmethod
    def of(cls, submit: Submit) -> "Content":
        rules = submit.sampling.rules
        looks = rules is not None and rules.look_at_prompt
        return cls(submit, [*submit.prompt, *submit.delivered], tuple(set(submit.prompt)) if looks else ())
