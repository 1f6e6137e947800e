"""Readers of published workloads. Each takes the path of a file that the user has; tokenmux contains none of
the data.

- the Aegaeon artifact's synthetic workloads (SOSP 2025; Zenodo 10.5281/zenodo.16673199)
- the Azure LLM inference traces of 2023 (Patel et al., Splitwise, ISCA 2024)
- Mooncake's traces, with hashes of prompts' blocks (Qin et al., FAST 2025; github.com/kvcache-ai/Mooncake)
"""

import csv
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from tokenmux.core.errors import NotFound
from tokenmux.core.facts import ModelId
from tokenmux.workload.trace import Trace, TraceRequest, TraceRow, open_text, read_trace


def read_paper(path: Path, n_models: int, rate: float) -> Trace:
    """One of the artifact's workloads by its number of models and nominal rate per model, in its own order of
    models."""
    name = f"synth-{n_models}-{rate:g}-1.0-1.0"
    with open_text(path) as lines:
        trace = [
            TraceRequest(
                _clock_s(row["request_time"]),
                row["model"],
                int(row["input_tokens"]),
                max(1, int(row["output_tokens"])),
            )
            for row in csv.DictReader(lines)
            if row["workload"] == name
        ]
    if not trace:
        raise NotFound(f"{path} has no workload {name}")
    return trace


def read_azure(path: Path, model: str) -> Trace:
    """One of the two services as a single model; time starts with the first request."""
    with open_text(path) as lines:
        rows = [
            (_date_s(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(lines)
        ]
    start_s = min(at_s for at_s, _, _ in rows)
    trace = [TraceRequest(at_s - start_s, model, max(1, n_in), max(1, n_out)) for at_s, n_in, n_out in rows]
    return sorted(trace, key=lambda line: line.arrival_s)


def read_mooncake(path: Path, model: str) -> Trace:
    """One of Mooncake's `.jsonl` files as a single model. Raises ConfigError that names the faulty line."""

    def translated(row: TraceRow) -> TraceRow:
        return {
            "arrival_s": row["timestamp"] / 1000,
            "model": model,
            "input_tokens": row["input_length"],
            "output_tokens": max(1, row["output_length"]),
            "hash_ids": row["hash_ids"],
        }

    return read_trace(path, translated)


def first_appearances(trace: Iterable[TraceRequest]) -> list[str]:
    """The models in the order of their first request: the artifact assigns architectures in this order."""
    return list(dict.fromkeys(line.model for line in trace))


ARTIFACT_LONGEST = 16384
"""The artifact scales requests as if none were longer than this."""

_ARTIFACT_SPARE = 32


def scale_as_artifact(trace: Iterable[TraceRequest], max_context: Mapping[ModelId, int]) -> Trace:
    """Shorten requests that exceed their model's context: both lengths by `max_context / max(length + 32,
    16384)`."""
    scaled = []
    for line in trace:
        limit = max_context[ModelId(line.model)]
        length = line.input_tokens + line.output_tokens + _ARTIFACT_SPARE
        if length > limit:
            share = limit / max(length, ARTIFACT_LONGEST)
            line = line.resized(
                max(1, int(line.input_tokens * share)), max(1, int(line.output_tokens * share))
            )
        scaled.append(line)
    return scaled


def _clock_s(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _date_s(text: str) -> float:
    """The files write seven decimals; datetime reads six."""
    whole, _, decimals = text.partition(".")
    return datetime.fromisoformat(whole).timestamp() + float(f"0.{decimals or 0}")
