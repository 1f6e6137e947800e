"""What it costs to carry messages between processes: our codec against pickle, in pairs.

    python -m benchmarks.messages [--quick]

Each message is encoded and decoded by both in turn, many times; a ratio below 1 says that ours is faster.
Commands and reports pass between front and node, launches and completions between node and executor. The
pickled values are slotted dataclasses of the same fields, as messages were until they had a codec.
"""

import argparse
import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from typing import Any

import msgspec

from benchmarks import report
from tokenmux.core.facts import FIRST_INSTANCE, FIRST_NODE, ModelId
from tokenmux.core.phases import DeviceState, Residency
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.codec import COMPLETIONS, INSTRUCTIONS, ORDERS, REPORTS, Codec
from tokenmux.messages.commands import Order, Submit, Ticket
from tokenmux.messages.completions import Completions, StepCompleted
from tokenmux.messages.launches import Instructions, OperationId, StepLaunch, StepSegment
from tokenmux.messages.reports import DeviceStatus, ModelStatus, NodeStatus, Reports, Tokens
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE

N_PAIRS = 31


@dataclass(frozen=True, slots=True)
class Case:
    """A message, how often it is carried in one measurement, and what it is called."""

    name: str
    message: Order | Reports | Instructions | Completions
    n: int


def cases() -> list[Case]:
    request = Request(RequestId("8f2c7a90"), ModelId("qwen3-8b"), 4096, 500, 1000.0)
    submit = Submit(request, tuple(range(100_000, 104_096)), Sampling(0.7, 0, 0.9, 2**63 + 1))
    tokens = [Tokens(RequestId(f"8f2c7a{i:02}"), 100 + i, (100_000 + i,), 1000.5) for i in range(32)]
    models = tuple(
        ModelStatus(
            ModelId(f"model-{i}-instruct"),
            Residency.HOST,
            pinned=False,
            n_queued=1,
            n_running=2,
            n_paged_out=3,
            n_tokens_overdue=4,
            counts=tuple(1000.5 + i * k for k in range(len(MODEL_TABLE.names))),
        )
        for i in range(80)
    )
    counts = tuple(1000.5 + k for k in range(len(INSTANCE_TABLE.names)))
    device = DeviceStatus(
        FIRST_INSTANCE,
        "NVIDIA H100",
        DeviceState.SERVING,
        arena_bytes=10**10,
        weight_bytes=10**10,
        kv_bytes=10**9,
        counts=counts,
        running_model=ModelId("qwen3-8b"),
        loading_model=None,
        resident=tuple(model.model for model in models[:4]),
        n_requests=40,
        n_deaths=0,
    )
    status = NodeStatus(1000.5, 10**11, 10**10, 10**11, 10**9, 40, 1000.5, 2000.5, (device,) * 4, models)
    operation = OperationId(123_456)
    sampling = Sampling(0.7, 0, 0.9, 2**63 + 1)
    segments = tuple(
        StepSegment(
            (100_000 + row,),
            1000 + row,
            900 + row,
            tuple(range(1000 + 64 * row, 1064 + 64 * row)),
            True,
            sampling,
            0,
            frozenset(),
        )
        for row in range(32)
    )
    drew = StepCompleted(operation, tuple(1000.5 + 0.02 * i for i in range(8)), (100_000,) * 32)
    return [
        Case("one token", Reports(FIRST_NODE, tokens[:1]), 2000),
        Case("32 tokens", Reports(FIRST_NODE, tokens), 200),
        Case("submit 4k prompt", Order(Ticket(7), submit), 100),
        Case("status of 4 devices and 80 models", Reports(FIRST_NODE, [status]), 50),
        Case("step of 8", (StepLaunch(operation, ModelId("qwen3-8b"), segments[:8], 8),), 200),
        Case("step of 32", (StepLaunch(operation, ModelId("qwen3-8b"), segments, 8),), 100),
        Case("step of 32 done", (drew,), 1000),
    ]


def codec_of(message: Order | Reports | Instructions | Completions) -> Codec[Any]:
    match message:
        case Order():
            return ORDERS
        case Reports():
            return REPORTS
        case (StepLaunch(), *_):
            return INSTRUCTIONS
        case _:
            return COMPLETIONS


def plain(value: object) -> object:
    """The same as slotted dataclasses, which pickle finds in this module."""
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
        name = f"Plain{type(value).__name__}"
        if name not in globals():
            globals()[name] = make_dataclass(name, names, frozen=True, slots=True)
            globals()[name].__module__ = __name__
        return globals()[name](*(plain(getattr(value, field)) for field in names))
    if isinstance(value, list | tuple) and value and isinstance(value[0], msgspec.Struct):
        return type(value)(plain(item) for item in value)
    return value


def seconds(call: Callable[[], object], n: int) -> float:
    """Processor seconds of one call, over `n` of them."""
    began = time.thread_time()
    for _ in range(n):
        call()
    return (time.thread_time() - began) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a look: a fifth of the pairs")
    n_pairs = N_PAIRS // 5 if parser.parse_args().quick else N_PAIRS
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    for case in cases():
        codec = codec_of(case.message)
        message, dataclasses = case.message, plain(case.message)
        encoded, pickled = codec.encode(message), pickle.dumps(dataclasses, 5)
        if codec.decode(encoded) != message or pickle.loads(pickled) != dataclasses:
            raise AssertionError(f"{case.name} does not come back as it was")
        name = case.name.replace(" ", "_")
        row: list[object] = [case.name, len(encoded), len(pickled)]
        for what, ours, theirs in (
            ("encode", lambda: codec.encode(message), lambda: pickle.dumps(dataclasses, 5)),  # noqa: B023
            ("decode", lambda: codec.decode(encoded), lambda: pickle.loads(pickled)),  # noqa: B023
        ):
            pairs = [(seconds(ours, case.n), seconds(theirs, case.n)) for _ in range(n_pairs)]
            own_us = 1e6 * statistics.median(own for own, _ in pairs)
            ratio = statistics.median(own / other for own, other in pairs)
            metrics |= {f"{name}_{what}_us": own_us, f"{name}_{what}_ratio": ratio}
            row += [own_us, ratio]
        metrics[f"{name}_bytes"] = float(len(encoded))
        rows.append(row)
    header = ["message", "bytes", "pickled", "encode us", "of pickle's", "decode us", "of pickle's"]
    report.table("Messages between processes, against pickle (median of pairs)", header, rows)
    report.finish("messages", metrics, {})


if __name__ == "__main__":
    main()
