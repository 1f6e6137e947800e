"""What a node does more with the prefix cache where no two prompts begin alike: by counting, on virtual time.

    python -m benchmarks.prefix_counted

200 requests for three models of which two fit: what executors are told to do is counted and compared, and the
processor time of the node (hashing of prompts included) is taken in alternating rounds.
"""

import gc
import random
import time
from collections import Counter

from benchmarks import report
from tokenmux.core.facts import DeviceFacts
from tokenmux.core.request import Request, RequestId
from tokenmux.messages.commands import Register
from tokenmux.messages.reports import Finished
from tokenmux.simulator.architectures import architecture
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

N_REQUESTS = 200
CELL = 128
MB = 1_000_000
Launches = Counter[str]


def serve(*, prefix_cache: bool) -> tuple[Launches, float]:
    """What an executor was told, by kind, and the node's seconds of processor time for one request."""
    models = [architecture("qwen2.5-0.5b").facts(f"m{number}") for number in range(3)]
    n_bytes = models[0].n_bytes
    facts = DeviceFacts(
        "imagined", int(2.6 * n_bytes), 500 * MB, 8e9, 8e9, 1e12, 1e13, prompt_cell_tokens=CELL
    )
    rng = random.Random(0)
    body = NodeOnVirtualTime(
        setup_of(facts, prefix_cache=prefix_cache), {_id(number): 16 for number in range(N_REQUESTS)}
    )
    for model in models:
        body.send(Register(model, path=""))
    for number in range(N_REQUESTS):
        name = models[rng.randrange(len(models))].id
        request = Request(_id(number), name, 400, 16, 10.0 + number / 4)
        body.submit_at(request, [rng.randrange(100, 40_000) for _ in range(400)])
    gc.collect()
    began_s = time.process_time()
    body.clock.run()
    seconds = time.process_time() - began_s
    if sum(isinstance(said, Finished) for said in body.said) != N_REQUESTS:
        raise RuntimeError("not all requests have ended")
    (executor,) = body.executors
    return Counter(type(told).__name__ for told in executor.log), seconds / N_REQUESTS


def _id(number: int) -> RequestId:
    return RequestId(f"r{number}")


def measure(n_rounds: int) -> dict[str, float]:
    """Launches with the cache over those without (1 only if they are the same of each kind), and milliseconds
    of the node for a request."""
    more_ms, off_ms = [], []
    same = True
    for number in range(n_rounds):
        found = {on: serve(prefix_cache=on) for on in ((True, False) if number % 2 else (False, True))}
        same &= found[True][0] == found[False][0]
        more_ms.append(1e3 * (found[True][1] - found[False][1]))
        off_ms.append(1e3 * found[False][1])
    n_on, n_off = (found[on][0].total() for on in (True, False))
    return {
        "unshared_launches_over_off": 1.0 if same else n_on / n_off + 1e-9,
        "unshared_launches": float(n_off),
        **report.spread("node_off_ms", off_ms),
        **report.spread("node_more_ms", more_ms),
    }


if __name__ == "__main__":
    report.table("Nothing shared, by counting", ("metric", "value"), list(measure(n_rounds=15).items()))
