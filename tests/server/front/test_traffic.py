"""Recording traffic: what is kept, for how long, and that no failure of the disk reaches a request."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_struct

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import ModelId
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.node.prompt_prefixes import PromptPrefixes
from tokenmux.server.config import PoolConfig
from tokenmux.server.front.newest_requests import NewestRequests
from tokenmux.server.front.traffic import TraceFile, TrafficRecorder
from tokenmux.server.serve import recorder_of
from tokenmux.testing import make_device
from tokenmux.testing.virtual_node import setup_of
from tokenmux.workload.trace import TraceRequest, arrivals, read_trace


def submit(number: int, at_s: float, prompt: tuple[int, ...] | None = None) -> Submit:
    prompt = prompt or (0,) * (10 + number)
    level = ServiceLevel(2.0, 0.05)
    request = Request(RequestId(f"r{number}"), ModelId("m"), len(prompt), 99, at_s, level, "bank", 3.0)
    return Submit(request, prompt, Sampling())


def test_a_request_is_a_line_of_a_trace() -> None:
    recorder = TrafficRecorder(10, start_s=100.0)
    recorder.ended(submit(1, 103.25), 7)
    assert recorder.recorded(0.0, 200.0) == [TraceRequest(3.25, "m", 11, 7, "bank", 2.0, 0.05, 3.0)]


def test_one_that_drew_nothing_still_asked() -> None:
    recorder = TrafficRecorder(10, 0.0)
    recorder.ended(submit(1, 1.0), 0)
    assert recorder.recorded(0.0, 2.0)[0].output_tokens == 1


def test_memory_keeps_the_newest_in_order_of_arrival() -> None:
    recorder = TrafficRecorder(3, 0.0)
    for number, at_s in enumerate((1.0, 9.0, 5.0, 7.0)):
        recorder.ended(submit(number, at_s), 5)
    assert [line.arrival_s for line in recorder.recorded(0.0, 10.0)] == [5.0, 7.0, 9.0]
    assert [line.arrival_s for line in recorder.recorded(3.5, 10.0)] == [7.0, 9.0]


def test_a_file_is_a_trace_at_every_moment(tmp_path: Path) -> None:
    recorder = TrafficRecorder(1, 0.0, TraceFile(tmp_path / "t.jsonl", 1 << 20, 2))
    for number in range(5):
        recorder.ended(submit(number, 10.0 - number), 5)
        assert len(read_trace(tmp_path / "t.jsonl")) == number + 1
    recorder.close()
    assert [line.arrival_s for line in read_trace(tmp_path / "t.jsonl")] == [6.0, 7.0, 8.0, 9.0, 10.0]


def test_full_files_are_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    recorder = TrafficRecorder(1, 0.0, TraceFile(tmp_path / "t.jsonl", 400, 2))
    for number in range(20):
        recorder.ended(submit(number, float(number)), 5)
    recorder.close()
    names = ["t.jsonl", "t.1.jsonl", "t.2.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).stat().st_size <= 400 for name in names)
    kept = [line.arrival_s for name in reversed(names) for line in read_trace(tmp_path / name)]
    assert kept == [float(number) for number in range(20 - len(kept), 20)]


def test_a_file_of_an_earlier_run_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("before\n")
    TraceFile(tmp_path / "t.jsonl", 400, 2).close()
    assert (tmp_path / "t.1.jsonl").read_text() == "before\n"
    assert (tmp_path / "t.jsonl").read_text() == ""


def test_a_full_disk_fails_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = TrafficRecorder(10, 0.0, TraceFile(tmp_path / "t.jsonl", 1 << 20, 1))

    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", no_space)
        recorder.ended(submit(1, 1.0), 5)
    recorder.ended(submit(2, 2.0), 5)
    assert len(recorder.recorded(0.0, 9.0)) == 2
    assert (tmp_path / "t.jsonl").read_text() == ""


def recorded(folder: Path, *submits: Submit, **asked: bool) -> list[TraceRequest]:
    """What the file of a server with such a prefix cache says."""
    device = replace(make_device(), prefill_chunk_tokens=16, prompt_cell_tokens=8)
    prefixes = PromptPrefixes(replace_struct(setup_of(device), **asked))
    recorder = recorder_of(config(folder, path="t.jsonl"), 0.0, prefixes)
    assert recorder is not None
    for one in submits:
        recorder.ended(one, 5)
    recorder.close()
    lines = read_trace(folder / "t.jsonl")
    assert recorder.recorded(0.0, 9.0) == lines, "memory has what the file has"
    return lines


def hashed(number: int, n_hashes: int) -> TraceRequest:
    return TraceRequest(float(number), "m", 8 * n_hashes, 1, hash_ids=(number,) * n_hashes, hash_tokens=8)


def test_the_oldest_requests_lose_their_hashes_and_then_themselves() -> None:
    newest = NewestRequests(4, max_hashes=6)
    for number, n_hashes in enumerate((2, 3, 0, 2, 3)):
        newest.add(hashed(number, n_hashes))
    assert [len(line.hash_ids) for line in newest] == [0, 0, 2, 3]
    assert [line.arrival_s for line in newest] == [1.0, 2.0, 3.0, 4.0]
    for number in range(5, 9):
        newest.add(hashed(number, 1))
    assert list(newest) == [hashed(number, 1) for number in range(5, 9)]
    newest.add(hashed(9, 7))
    assert [len(line.hash_ids) for line in newest] == [0, 0, 0, 0]
    assert list(NewestRequests(0)) == []


def test_a_file_says_which_prompts_begin_alike_and_not_with_what(tmp_path: Path) -> None:
    one = submit(1, 1.0, (1,) * 16 + (2,) * 9)
    other = submit(2, 2.0, (1,) * 16 + (3,) * 16)
    lines = recorded(tmp_path, one, other, prefix_cache=True)
    first, second = (line.hash_ids for line in lines)
    assert {line.hash_tokens for line in lines} == {8}
    assert (len(first), len(second)) == (3, 4)
    assert first[:2] == second[:2]
    assert len({*first, *second}) == 5
    again = recorded(tmp_path, one, prefix_cache=True)[0].hash_ids
    assert not set(again) & set(first), "another start has another secret"
    found = [a.request.prefix for a in arrivals(lines, {ModelId("m"): 99}, cell_tokens=16)]
    keys = [prefix.keys for prefix in found if prefix is not None]
    assert [len(own) for own in keys] == [1, 2]
    assert keys[0][0] == keys[1][0]


def test_nothing_is_hashed_for_requests_that_share_nothing(tmp_path: Path) -> None:
    long = submit(1, 1.0, (1,) * 32)
    (without,) = recorded(tmp_path, replace_struct(long, prefix_cache=False), prefix_cache=True)
    (off,) = recorded(tmp_path, long, prefix_cache=False)
    assert without.hash_ids == off.hash_ids == ()


def config(folder: Path, **asked: object) -> PoolConfig:
    return PoolConfig.model_validate({"record_traffic": asked}, context=folder)


def test_the_configuration_says_what_is_recorded(tmp_path: Path) -> None:
    assert recorder_of(config(tmp_path, window=0), 0.0) is None
    by_default = recorder_of(config(tmp_path), 0.0)
    assert by_default is not None
    assert by_default.window == 10_000
    with_file = recorder_of(config(tmp_path, window=0, path="t.jsonl"), 0.0)
    assert with_file is not None
    with_file.ended(submit(1, 1.0), 5)
    with_file.close()
    assert len(read_trace(tmp_path / "t.jsonl")) == 1
    with pytest.raises(ConfigError, match=r"record_traffic\.path: .* cannot be written: No such file"):
        recorder_of(config(tmp_path, path="none/t.jsonl"), 0.0)
