"""The real front behind the real servers, gRPC's or HTTP's, over a node that only draws tokens."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.null_node import NullNode
from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.messages.setups import DeviceSetup
from tokenmux.processes import garbage_collection
from tokenmux.server.app import Transport, running
from tokenmux.server.children.encoder_children import EncoderChildren, TextLimits
from tokenmux.server.children.grammar_children import GrammarChildren
from tokenmux.server.children.served_catalogue import ServedCatalogue
from tokenmux.server.front.front import Front
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.machine import Machine
from tokenmux.server.serve import DeviceCapacity

DEVICE = DeviceFacts(
    name="null",
    arena_bytes=4 << 30,
    host_kv_bytes=1 << 30,
    copy_in_bytes_per_s=1e10,
    copy_out_bytes_per_s=1e10,
    memory_bytes_per_s=1e10,
    flops_per_s=1e11,
)
HOST = HostFacts(cache_bytes=4 << 30, fetch_bytes_per_s=1e9)


def serve(catalogue: str, step_s: float, token_ids: Sequence[int], http: bool = False) -> None:
    """The program of a process: print the port (of OpenAI's dialect, with `http`), and serve the catalogue
    until the input ends."""
    asyncio.run(_serve(catalogue, step_s, token_ids, HttpTransport() if http else None))
    os._exit(0)  # without what libraries do while Python exits


async def _serve(catalogue: str, step_s: float, token_ids: Sequence[int], http: HttpTransport | None) -> None:
    front = Front(
        lambda on_reports, *, devices: NullNode(step_s, token_ids, on_reports),
        ServedCatalogue(Path(catalogue)),
        DeviceCapacity(HOST),
        [DeviceSetup(DEVICE)],
        Machine(),
        encoder=EncoderChildren(TextLimits()),
        grammars=GrammarChildren(),
    )
    async with running(front, Transport(), http) as server:
        garbage_collection.settle()
        print(server.http_port or server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
