"""What the scheduler never sees of a request: its token ids and how to draw more."""

from dataclasses import dataclass

from tokenmux.messages.commands import Submit


@dataclass(slots=True)
class Content:
    """`token_ids` is the prompt and all that was drawn since."""

    submit: Submit
    token_ids: list[int]
