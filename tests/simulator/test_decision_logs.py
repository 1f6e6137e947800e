"""What the scheduler decides on pools of the paper's three sizes, as hashes: they tell a change that nobody
meant.

Where a hash differs because behaviour was meant to change, compare `benchmarks.fewest_gpus` first, then say
here what is decided now. The traffic is Poisson at nine tenths of the paper's rates, seeded, on as few
devices as it is served on nearly in time; the paper's own files are not in this repository. Arrivals are
rounded to a millisecond, so that a logarithm's last digit does not count.

Since 26 November 2026 a request that moves is paged out first: page-outs before moves, fewer rebuilds after
them. And what is late by more than 0.3 TTFTs goes behind what can be on time, under all policies: five of the
eight differ by turns after the first late requests. With little memory some models never fit together: each
of them adds to the load of others, and fewer meet. Later that day prompts began to ride along with rows in
pieces (all but `aegaeon`), bursts to end for KV that has come back, and KV to go by its model's next turn.
"""

from dataclasses import replace
from hashlib import sha256

import pytest

from benchmarks.workloads import steady
from tokenmux.core.effects import Effects, decisions
from tokenmux.core.plan import (
    Activate,
    AtOnce,
    Compact,
    Discard,
    Drop,
    Evict,
    Fetch,
    Operation,
    PageIn,
    PageOut,
    Step,
)
from tokenmux.simulator.doubts import ALL_DOUBTS, SURE, Doubts
from tokenmux.simulator.hardware import GB
from tokenmux.simulator.scenario import Hardware, simulate

AS_USUAL = Hardware()
SMALL_CACHE = Hardware(host_cache_bytes=150 * GB, devices_per_host=2)
SMALL_MEMORY = Hardware(host_kv_bytes=GB, usable=0.6)


def line(index: int, at_s: float, decided: Operation | AtOnce) -> str:
    """One decision, in a form that does not depend on the names of classes."""
    match decided:
        case Step(model, chunks, repeat):
            what = f"step {model} {repeat} " + " ".join(f"{c.request}:{c.start}+{c.n_tokens}" for c in chunks)
        case Activate(model):
            what = f"activate {model}"
        case Fetch(model):
            what = f"fetch {model}"
        case PageIn(requests):
            what = "page-in " + " ".join(requests)
        case PageOut(requests):
            what = "page-out " + " ".join(requests)
        case Compact(n_bytes):
            what = f"compact {n_bytes}"
        case Evict(model):
            what = f"evict {model}"
        case Drop(request):
            what = f"drop {request}"
        case Discard(request):
            what = f"discard {request}"
    return f"{index} {at_s!r} {what}\n"


@pytest.mark.parametrize(
    ("n_models", "rate", "n_devices", "duration_s", "n_lines", "expected"),
    [
        pytest.param(80, 0.1, 6, 60.0, 6600, "9a82f1db98ad9ff4", id="80 models at 0.1"),
        pytest.param(54, 0.5, 6, 20.0, 6595, "f723c538b2385f2b", id="54 models at 0.5"),
        pytest.param(80, 0.5, 9, 15.0, 6548, "bee73431275fef07", id="80 models at 0.5"),
    ],
)
def test_what_is_decided_has_not_changed(
    n_models: int, rate: float, n_devices: int, duration_s: float, n_lines: int, expected: str
) -> None:
    assert logged(n_models, 0.9 * rate, duration_s, n_devices) == (n_lines, expected)


@pytest.mark.parametrize(
    ("policy", "n_devices", "hardware", "doubts", "n_lines", "expected"),
    [
        pytest.param("slack", 4, SMALL_CACHE, SURE, 1721, "bb1c8167de536370", id="models on disk"),
        pytest.param("slack", 2, SMALL_MEMORY, SURE, 1674, "401e2148c1c86eb1", id="little memory"),
        pytest.param("slack", 3, AS_USUAL, ALL_DOUBTS, 2179, "b7de3e5a988fd8be", id="doubts"),
        pytest.param("aegaeon", 6, AS_USUAL, SURE, 1311, "1bfd2f2898ca622d", id="aegaeon"),
        pytest.param("request-level", 6, AS_USUAL, SURE, 996, "ee981d19dfec3ea0", id="request-level"),
    ],
)
def test_nor_in_other_worlds(
    policy: str, n_devices: int, hardware: Hardware, doubts: Doubts, n_lines: int, expected: str
) -> None:
    assert logged(24, 0.3, 20.0, n_devices, policy, hardware, doubts) == (n_lines, expected)


def logged(
    n_models: int,
    rate: float,
    duration_s: float,
    n_devices: int,
    policy: str = "slack",
    hardware: Hardware = AS_USUAL,
    doubts: Doubts = SURE,
) -> tuple[int, str]:
    """Number and hash of the decisions."""
    market, arrivals = steady(n_models, rate, duration_s)
    arrivals = [
        replace(a, request=replace(a.request, arrival_s=round(a.request.arrival_s, 3))) for a in arrivals
    ]
    log: list[str] = []

    def note(index: int, at_s: float, effects: Effects) -> None:
        log.extend(line(index, at_s, decided) for decided in decisions(effects))

    simulate(market, arrivals, n_devices, policy, hardware, on_effects=note, doubts=doubts)
    return len(log), sha256("".join(log).encode()).hexdigest()[:16]
