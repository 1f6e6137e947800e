"""The content of a request, which the scheduler never sees: its token ids and how to draw more."""

from dataclasses import dataclass

from tokenmux.messages.commands import Submit


@dataclass(slots=True)
class Content:
    """`token_ids` is the prompt and everything drawn since."""

    submit: Submit
    token_ids: list[int]
