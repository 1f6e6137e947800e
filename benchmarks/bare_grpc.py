"""A bare `grpc.aio` server that writes the events that a front would write, with nothing behind them.

Imports gRPC and the generated messages only: what a large process costs (collections of its garbage, colder
caches) is the front's.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from benchmarks.steps_of_bare_servers import SharedSteps
from tokenmux.v1 import inference_pb2, inference_pb2_grpc


class BareService(inference_pb2_grpc.InferenceServiceServicer):
    """Writes each stream the next token of a text once a step."""

    def __init__(self, step_s: float, tokens: Sequence[tuple[int, str]]) -> None:
        """`tokens` are ids with their texts, over and over."""
        self.steps = SharedSteps(step_s)
        self._tokens = tokens

    async def GenerateStream(
        self,
        request: inference_pb2.GenerateStreamRequest,
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> None:
        asked = request.request
        n, n_prompt = asked.stopping.max_tokens, len(asked.token_ids.ids)
        response = inference_pb2.GenerateStreamResponse
        info = inference_pb2.PromptInfo(
            request_id="0123456789abcdef",
            model=asked.model,
            n_prompt_tokens=n_prompt,
            max_tokens=n,
            seed=2**63,
        )
        await context.write(response(prompt_info=info))
        state = inference_pb2.RequestState(phase=inference_pb2.REQUEST_PHASE_RUNNING)
        await context.write(response(state=state))
        for index in range(n):
            await self.steps.wait()
            token, text = self._tokens[index % len(self._tokens)]
            delta = inference_pb2.TokenDelta(index=index, token_ids=(token,), text=text)
            await context.write(response(tokens=delta))
        finish = inference_pb2.FinishInfo(
            reason=inference_pb2.FINISH_REASON_LENGTH,
            usage=inference_pb2.Usage(n_prompt_tokens=n_prompt, n_completion_tokens=n, n_tokens_on_time=n),
            timings=inference_pb2.Timings(queue_s=0.1, ttft_s=0.1, total_s=1.0),
            seed=2**63,
        )
        await context.write(response(finish_info=finish))


def serve(step_s: float, tokens: Sequence[tuple[int, str]]) -> None:
    """The program of a process: print the port, and serve until the input ends."""
    asyncio.run(_serve(step_s, tokens))


async def _serve(step_s: float, tokens: Sequence[tuple[int, str]]) -> None:
    server = grpc.aio.server()
    service = BareService(step_s, tokens)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stepping = asyncio.create_task(service.steps.run())
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    stepping.cancel()
    await server.stop(0)
