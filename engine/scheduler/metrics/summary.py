"""Figures of merit over many requests, the same for the engine and the simulator.

Exact from records (`summarise`), or from counters with bounded memory (`summary_of`), whose percentiles are
those of histograms. Tokens on time and requests fully on time are strict: a late token stays late, and a
request that failed counts all the tokens that it was due. The artifact's attainment is reported beside them
under its own name.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean

from tokenmux.core.record import RequestRecord
from tokenmux.scheduler.metrics.counters import ServiceCounters
from tokenmux.scheduler.metrics.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares between 0 and 1, times in seconds, percentiles over requests."""

    n_requests: int
    n_tokens: int
    tokens_on_time: float
    requests_on_time: float
    artifact_attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    gap_p50_s: float
    """Time between a token and the next of its request; 0 if not counted."""
    gap_p99_s: float
    goodput_tokens_per_s: float
    """Tokens on time, per second from the first arrival to the last token (or of the given time)."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summarise(
    records: Iterable[RequestRecord],
    n_tokens_never_drawn: int = 0,
    gaps: Histogram | None = None,
    n_refused: int = 0,
) -> Summary:
    """Summarise records. `n_tokens_never_drawn` are tokens due to requests that were refused or failed, if
    known."""
    gaps = gaps or Histogram()
    records = list(records)
    n_requests = len(records) + n_refused
    n_tokens = sum(r.n_tokens for r in records) + n_tokens_never_drawn
    n_on_time = sum(r.n_on_time for r in records)
    whole = sum(r.is_on_time for r in records)
    attained = [r.artifact_attainment for r in records if r.artifact_attainment is not None]
    ttfts = sorted(r.ttft_s for r in records if r.ttft_s is not None)
    tpots = sorted(r.tpot_s for r in records if r.tpot_s is not None)
    begin_s = min((r.request.arrival_s for r in records), default=0.0)
    end_s = max((r.last_token_s for r in records if r.last_token_s is not None), default=begin_s)
    return Summary(
        n_requests=n_requests,
        n_tokens=n_tokens,
        tokens_on_time=n_on_time / n_tokens if n_tokens else 1.0,
        requests_on_time=whole / n_requests if n_requests else 1.0,
        artifact_attainment=fmean(attained) if attained else 1.0,
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p99_s=percentile(ttfts, 0.99),
        tpot_p50_s=percentile(tpots, 0.5),
        tpot_p99_s=percentile(tpots, 0.99),
        gap_p50_s=gaps.percentile(0.5),
        gap_p99_s=gaps.percentile(0.99),
        goodput_tokens_per_s=n_on_time / (end_s - begin_s) if end_s > begin_s else 0.0,
    )


def summary_of(counters: ServiceCounters, seconds: float) -> Summary:
    """Summarise a model's or a tenant's counters over `seconds`. Percentiles are upper bounds of the
    histograms' intervals."""
    n_requests, n_tokens = counters.n_requests, counters.n_tokens
    return Summary(
        n_requests=n_requests,
        n_tokens=n_tokens,
        tokens_on_time=counters.n_tokens_on_time / n_tokens if n_tokens else 1.0,
        requests_on_time=counters.n_requests_on_time / n_requests if n_requests else 1.0,
        artifact_attainment=counters.attained / counters.n_attained if counters.n_attained else 1.0,
        ttft_p50_s=counters.ttft.percentile(0.5),
        ttft_p99_s=counters.ttft.percentile(0.99),
        tpot_p50_s=counters.tpot.percentile(0.5),
        tpot_p99_s=counters.tpot.percentile(0.99),
        gap_p50_s=counters.gaps.percentile(0.5),
        gap_p99_s=counters.gaps.percentile(0.99),
        goodput_tokens_per_s=counters.n_tokens_on_time / seconds if seconds > 0 else 0.0,
    )


def percentile(ordered: list[float], share: float) -> float:
    """The smallest of `ordered` (ascending) that `share` of them do not exceed; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
