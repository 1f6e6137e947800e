"""Streams that run at the same time, as their client sees them: when which tokens arrived."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenmux.client import AsyncClient, Delta


@dataclass(slots=True)
class Seen:
    """What one stream received."""

    tokens: list[int] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    """The time of arrival of each token, on the event loop's clock."""


@dataclass(frozen=True, slots=True)
class SeenTogether:
    """What streams of one batch received."""

    began_s: float
    streams: tuple[Seen, ...]

    @property
    def whole_s(self) -> float:
        """Seconds from the first request to the last token."""
        return max(stream.arrived_s[-1] for stream in self.streams) - self.began_s

    @property
    def n_tokens(self) -> int:
        return sum(len(stream.tokens) for stream in self.streams)

    @property
    def full_batch_s(self) -> list[float]:
        """When tokens arrived while all streams ran: those of the stream that began last, until the first
        one ended."""
        last = max(self.streams, key=lambda stream: stream.arrived_s[0])
        end_s = min(stream.arrived_s[-1] for stream in self.streams)
        return [at_s for at_s in last.arrived_s if at_s <= end_s]


async def stream_together(
    client: AsyncClient, model: str, prompts: Sequence[Sequence[int]], n_output: int
) -> SeenTogether:
    """Send all prompts at once; each generates `n_output` tokens greedily, whatever it says."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    streams = tuple(Seen() for _ in prompts)
    pairs = zip(streams, prompts, strict=True)
    await asyncio.gather(*(stream_into(seen, client, model, prompt, n_output) for seen, prompt in pairs))
    return SeenTogether(began_s, streams)


async def stream_into(
    seen: Seen, client: AsyncClient, model: str, prompt: Sequence[int], n_output: int
) -> None:
    """Note in `seen` what a stream of `n_output` greedy tokens receives, while it does."""
    loop = asyncio.get_running_loop()
    async for event in client.stream(model, prompt, max_tokens=n_output, ignore_end_tokens=True):
        if isinstance(event, Delta):
            seen.tokens += event.token_ids
            seen.arrived_s += [loop.time()] * len(event.token_ids)
