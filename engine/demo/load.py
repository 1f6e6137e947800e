"""The traffic of the demo: a bursty, seeded stream of chat and completion requests for every model, sent for
real."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from tokenmux.client import AsyncClient, CallFailed, Delta, Finish
from tokenmux.workload.generate import gamma_with_cv, zipf_rates

QUESTIONS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Give me three ideas for a rainy Sunday.",
    "What is a hash table good for?",
    "Write a haiku about a busy kitchen.",
    "How do I politely decline an invitation?",
    "What is the difference between a lake and a pond?",
    "Name two uses for baking soda.",
    "Why do cats purr?",
    "Summarise the story of Little Red Riding Hood in two sentences.",
    "What should I pack for a day in the mountains?",
    "How does a bicycle stay upright?",
)
BEGINNINGS = (
    "Once upon a time, in a town by the sea, there lived",
    "The three most important things about writing software are",
    "Dear neighbour, I am writing to you because",
    "To make a good cup of tea, first",
    "The history of the railway begins",
    "In the year 2050, most cities",
)
SHORTEST, LONGEST = 16, 64
BURSTINESS = 2.0
"""Coefficient of variation of the gaps between requests; 1 would be Poisson."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of the stream, `at_s` seconds after its beginning."""

    at_s: float
    model: str
    prompt: str
    is_chat: bool
    n_tokens: int


@dataclass(slots=True)
class RequestOutcome:
    """How a request went; `error` is empty unless it failed."""

    planned: PlannedRequest
    finish: Finish | None = None
    error: str = ""
    text: str = ""


@dataclass(slots=True)
class StreamProgress:
    """Figures for the person watching, updated while the stream runs."""

    n_planned: int
    n_sent: int = 0
    n_tokens: int = 0
    outcomes: list[RequestOutcome] = field(default_factory=list)
    last_text: str = ""


def plan_stream(models: list[str], n_requests: int, duration_s: float, seed: int) -> list[PlannedRequest]:
    """A stream over `models`, the first of them the most popular (Zipf), with at least one request for
    each."""
    rng = np.random.default_rng(seed)
    times = gamma_with_cv(BURSTINESS)(rng, 2 * n_requests / duration_s, duration_s)
    times = np.sort(rng.permutation(times)[:n_requests])
    shares = np.array(zipf_rates(len(models), 1.0, exponent=0.6))
    chosen = [*range(len(models)), *rng.choice(len(models), max(0, len(times) - len(models)), p=shares)]
    rng.shuffle(chosen)
    return [_plan_one(rng, float(at_s), models[index]) for at_s, index in zip(times, chosen, strict=False)]


def _plan_one(rng: np.random.Generator, at_s: float, model: str) -> PlannedRequest:
    is_chat = bool(rng.random() < 0.6)
    texts = QUESTIONS if is_chat else BEGINNINGS
    return PlannedRequest(
        at_s, model, texts[rng.integers(len(texts))], is_chat, int(rng.integers(SHORTEST, LONGEST + 1))
    )


async def send_stream(
    client: AsyncClient, stream: list[PlannedRequest], progress: StreamProgress, ttft_s: float, tpot_s: float
) -> None:
    """Send every request at its time and wait for all of them to end."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for planned in stream:
            await asyncio.sleep(max(0.0, began_s + planned.at_s - loop.time()))
            progress.n_sent += 1
            tasks.create_task(_send(client, planned, progress, ttft_s, tpot_s))


async def _send(
    client: AsyncClient, planned: PlannedRequest, progress: StreamProgress, ttft_s: float, tpot_s: float
) -> None:
    outcome = RequestOutcome(planned)
    prompt = [{"role": "user", "content": planned.prompt}] if planned.is_chat else planned.prompt
    pieces: list[str] = []
    try:
        events = client.stream(
            planned.model,
            prompt,
            max_tokens=planned.n_tokens,
            temperature=0.7,
            top_p=0.9,
            seed=planned.n_tokens,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
        )
        async with events:
            async for event in events:
                match event:
                    case Delta(_, token_ids, text):
                        progress.n_tokens += len(token_ids)
                        pieces.append(text)
                    case Finish():
                        outcome.finish = event
    except CallFailed as error:
        outcome.error = str(error)
    outcome.text = "".join(pieces)
    progress.last_text = f"{planned.model}: {planned.prompt} → {outcome.text}"
    progress.outcomes.append(outcome)
