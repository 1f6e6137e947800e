"""What a pool did of late, as a document for people to look at."""

import asyncio
import math
from dataclasses import dataclass

from tokenmux.scheduler.metrics.timeline import chrome_trace, seconds_covered
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.request_rules import check_seconds


@dataclass(frozen=True, slots=True)
class TraceDocument:
    """The operations and requests of some time: `n_spans` of them, over `seconds`."""

    chrome_trace: str
    """A JSON document; see `tokenmux.scheduler.metrics.timeline.chrome_trace`."""
    n_spans: int
    seconds: float


async def trace_document(node: NodeSide, last_s: float) -> TraceDocument:
    """What the node did within the last `last_s` seconds; 0 for everything that it remembers. Raises
    InvalidRequest, and Unavailable without a node."""
    check_seconds("last_s", last_s)
    spans = await node.trace(last_s or math.inf)
    document = await asyncio.to_thread(chrome_trace, spans)
    return TraceDocument(document, len(spans), seconds_covered(spans))
