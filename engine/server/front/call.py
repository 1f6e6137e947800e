"""One call of a client: its choices, each a request of its own to all other parts, and the one stream in
which they are read.

    node ─ Tokens ─▶ choice 0 ─┐
    node ─ Tokens ─▶ choice 1 ─┴▶ EventBuffer ─▶ client      events have the number of their choice

Choices have one prompt and stand side by side: each is placed, paged out and recovered by itself. They share
a reader: if it stops, all are paused; if it leaves, or one of them fails, all end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Submit
from tokenmux.server.front.buffer import EventBuffer
from tokenmux.server.front.call_reader import CallReader
from tokenmux.server.front.generation import StreamEvent
from tokenmux.server.front.live_request import LiveRequest
from tokenmux.server.front.model_text import OutputText


@dataclass(frozen=True, slots=True)
class AdmittedChoice:
    """One choice that may go to a node. `text` makes the text of its output, of which `calls` reads calls of
    tools, if there are tools. Both have been given the tokens that its client holds."""

    number: int
    submit: Submit
    text: OutputText
    calls: CallReader | None = None


class Call:
    """The choices of a call, one at least. Iterate over it to read their events."""

    def __init__(
        self,
        n_choices: int,
        buffer_tokens: int,
        on_full: Callable[[LiveRequest], None],
        on_drained: Callable[[LiveRequest], None],
    ) -> None:
        """`on_full` and `on_drained` are called for each choice that has not ended. Set `choices`."""
        self.choices: Sequence[LiveRequest] = ()
        self.buffer = EventBuffer(
            buffer_tokens,
            lambda: self._tell(on_full),
            lambda: self._tell(on_drained),
            n_choices,
        )

    def __aiter__(self) -> EventBuffer:
        return self.buffer

    async def __anext__(self) -> StreamEvent:
        return await self.buffer.__anext__()

    @property
    def id(self) -> RequestId:
        """The id of the call, which is that of the first of these choices."""
        return self.choices[0].id

    @property
    def closed(self) -> bool:
        """True if the client's side of all choices has ended."""
        return all(choice.closed for choice in self.choices)

    def _tell(self, change: Callable[[LiveRequest], None]) -> None:
        for choice in self.choices:
            if not choice.closed:
                change(choice)


def choice_id(call: RequestId, choice: int) -> RequestId:
    """The id of the request that is a choice of a call. No client can choose one with a `#`."""
    return RequestId(f"{call}#{choice}") if choice else call
