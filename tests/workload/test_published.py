"""Readers of published files, on small files of the same form."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from tokenmux.core.errors import ConfigError, NotFound
from tokenmux.core.facts import ModelId
from tokenmux.workload.published import (
    first_appearances,
    read_azure,
    read_mooncake,
    read_paper,
    scale_as_artifact,
)
from tokenmux.workload.servegen import read_lengths, read_windows, servegen_market
from tokenmux.workload.shape import clipped, faster, longer, window
from tokenmux.workload.trace import TraceRequest


def written(path: Path, text: str) -> Path:
    with gzip.open(path, "wt") as file:
        file.write(text)
    return path


def test_paper_workloads_are_found_by_name(tmp_path: Path) -> None:
    path = written(
        tmp_path / "w.csv.gz",
        "workload,request_time,model,input_tokens,output_tokens\n"
        "synth-8-0.1-1.0-1.0,00:00:03.071,m1,619,503\nsynth-8-0.1-1.0-1.0,00:01:05.068,m4,706,28\n"
        "synth-8-0.5-1.0-1.0,00:00:00.500,m4,706,28\n",
    )
    trace = read_paper(path, 8, 0.1)
    assert [(line.arrival_s, line.model) for line in trace] == [(3.071, "m1"), (65.068, "m4")]
    assert first_appearances(trace) == ["m1", "m4"]
    with pytest.raises(NotFound, match=r"synth-9-0\.1"):
        read_paper(path, 9, 0.1)


def test_azure_starts_at_its_first_request(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.csv.gz",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.4799600,3180,8\n",
    )
    first, second = read_azure(path, "code")
    assert (first.arrival_s, first.input_tokens) == (0.0, 4808)
    assert second.arrival_s == pytest.approx(1.5, abs=1e-5)


MOONCAKE = (
    '{"timestamp": 27482, "input_length": 1025, "output_length": 0, "hash_ids": [46, 47, 2353]}\n'
    '{"timestamp": 0, "input_length": 512, "output_length": 52, "hash_ids": [46]}\n'
)


def test_mooncakes_traces_have_hashes(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl.gz", MOONCAKE)
    assert read_mooncake(path, "kimi") == [
        TraceRequest(0.0, "kimi", 512, 52, hash_ids=(46,)),
        TraceRequest(27.482, "kimi", 1025, 1, hash_ids=(46, 47, 2353)),
    ]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("27482", '"x"', "line 1"),
        ("27482", "-1", "0 or more"),
        ("27482", "1e999", "0 or more"),
        ("512", "1e999", "line 2"),
        ("52,", "null,", "line 2"),
        ("[46]", "[46, 47]", "2 hash_ids"),
        ("[46]", "null", "must be a list"),
        ('"hash_ids": [46]', '"hashes": [46]', "line 2: missing field 'hash_ids'"),
    ],
)
def test_a_bad_line_of_mooncakes_is_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = written(tmp_path / "m.jsonl.gz", MOONCAKE.replace(before, after))
    with pytest.raises(ConfigError, match=message):
        read_mooncake(path, "kimi")


def test_the_artifact_scales_only_what_is_too_long() -> None:
    trace = [
        TraceRequest(0, "m", 4000, 60),
        TraceRequest(1, "m", 8192, 8192),
        TraceRequest(2, "m", 20_000, 400),
    ]
    scaled = scale_as_artifact(trace, {ModelId("m"): 4096})
    assert scaled[0].input_tokens == 4000
    assert (scaled[1].input_tokens, scaled[1].output_tokens) == (2044, 2044)
    assert scaled[2].input_tokens == int(20_000 * 4096 / 20_432)


ARRIVALS = (
    "model,client,window_start_s,rate_rps,cv,iat_dist,iat_shape,iat_scale\n"
    "m-large,3,0,0.5,2.0,Gamma,0.25,8\nm-large,3,600,1.0,2.0,Weibull,0.5,1\nm-large,9,600,0.1,,,,\n"
    "m-mid,1,0,5,1,Gamma,1,1\n"
)
LENGTHS = (
    "model,client,field,requests,mean,p0.1,p50,p99.9\n"
    "m-large,3,input_tokens,100,10,5,10,20\nm-large,3,output_tokens,100,4,2,4,8\n"
)


def test_servegen_clients_become_models(tmp_path: Path) -> None:
    windows = read_windows(written(tmp_path / "w.csv.gz", ARRIVALS), "m-large", 0.0, 1200.0)
    lengths = read_lengths(written(tmp_path / "l.csv.gz", LENGTHS), "m-large")
    trace = servegen_market(np.random.default_rng(0), windows, lengths)
    assert trace == servegen_market(np.random.default_rng(0), windows, lengths)
    per_model = {name: [line for line in trace if line.model == name] for name in ("model-3", "model-9")}
    assert len(per_model["model-3"]) == 300 + 600
    assert len(per_model["model-9"]) == pytest.approx(60, abs=30)
    assert all(0 <= line.arrival_s < 1200 for line in trace)
    assert all(line.arrival_s >= 600 for line in per_model["model-9"])
    assert all(5 <= line.input_tokens <= 20 for line in trace)
    with pytest.raises(NotFound):
        read_windows(tmp_path / "w.csv.gz", "m-large", 5000.0, 6000.0)


def test_bending_a_trace() -> None:
    trace = [TraceRequest(float(t), "m", 100, 50) for t in range(10)]
    assert [line.arrival_s for line in window(trace, 3.0, 5.0)] == [0.0, 1.0]
    assert faster(trace, 2.0)[9].arrival_s == 4.5
    assert (longer(trace, 2.0, 0.5)[0].input_tokens, longer(trace, 2.0, 0.5)[0].output_tokens) == (200, 25)
    assert (clipped(trace, 80)[0].input_tokens, clipped(trace, 80)[0].output_tokens) == (40, 40)
