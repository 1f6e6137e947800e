"""The trace format: what is written is read again, and what is wrong is named with its line."""

from dataclasses import replace
from pathlib import Path

import pytest

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import ModelId
from tokenmux.core.request import ServiceLevel
from tokenmux.workload.trace import TraceRequest, arrivals, read_trace, write_trace

TRACE = [
    TraceRequest(0.0, "a", 10, 3),
    TraceRequest(0.5, "b", 1, 1, tenant="bank", ttft_s=2.0, tpot_s=0.05, weight=2.0),
    TraceRequest(0.6, "b", 1200, 1, hash_ids=(0, 7, 2**64 - 1)),
    TraceRequest(0.7, "b", 1200, 1, hash_ids=(1,), hash_tokens=128),
]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.jsonl.gz", "t.csv.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_trace(tmp_path / name, TRACE)
    assert read_trace(tmp_path / name) == TRACE


def test_json_lines_leave_defaults_out(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", TRACE[:1])
    assert (tmp_path / "t.jsonl").read_text() == (
        '{"arrival_s": 0.0, "model": "a", "input_tokens": 10, "output_tokens": 3}\n'
    )


def hashed(ids: str, tokens: int = 512) -> str:
    fields = '"arrival_s": 0, "model": "a", "input_tokens": 512, "output_tokens": 1'
    return f'{{{fields}, "hash_ids": {ids}, "hash_tokens": {tokens}}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{]", "line 1"),
        ("[]", "not a JSON object"),
        ('{"arrival_s": 0, "model": "a", "input_tokens": 1}', "missing fields \\['output_tokens'\\]"),
        ('{"arrival_s": 0, "model": "a", "input_tokens": 0, "output_tokens": 1}', "at least 1"),
        (
            '{"arrival_s": 0, "model": "a", "input_tokens": 1.5, "output_tokens": 1}',
            "input_tokens must be a whole",
        ),
        ('{"arrival_s": 0, "model": "a", "input_tokens": 1, "output_tokens": 0.5}', "and is 0.5"),
        ('{"arrival_s": -1, "model": "a", "input_tokens": 1, "output_tokens": 1}', "0 or more"),
        ('{"arrival_s": NaN, "model": "a", "input_tokens": 1, "output_tokens": 1}', "0 or more"),
        ('{"arrival_s": "x", "model": "a", "input_tokens": 1, "output_tokens": 1}', "line 1"),
        (
            '{"arrival_s": 0, "model": "a", "input_tokens": 1, "output_tokens": 1, "text": "hi"}',
            "unknown fields",
        ),
        (hashed("[1, 2]"), "2 hash_ids, but a prompt of 512 tokens has 1 blocks of 512: set hash_tokens"),
        (hashed("[1]", 0), "hash_tokens must be 1 to 65536"),
        (hashed("[1]", 65537), "hash_tokens must be 1 to 65536"),
        (hashed("[1]", 10**400), "hash_tokens must be 1 to 65536"),
        (hashed("[-1]"), "whole numbers from 0"),
        (hashed(f"[{2**64}]"), "whole numbers from 0"),
        (hashed("[1.0]"), "hash_ids must be whole numbers"),
        (hashed("[true]"), "hash_ids must be whole numbers"),
        (hashed("[[1]]"), "hash_ids must be whole numbers"),
        (hashed('["x"]'), "line 1"),
        (hashed('"12"'), "hash_ids must be a list"),
        (hashed("[" + "9" * 5000 + "]"), "line 1"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        read_trace(path)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_byte_order_mark_is_not_a_part_of_the_first_field(tmp_path: Path, name: str) -> None:
    """Spreadsheets write one."""
    path = tmp_path / name
    write_trace(path, TRACE)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_trace(path) == TRACE


def test_lines_may_come_in_any_order(tmp_path: Path) -> None:
    """A server writes them as requests end."""
    write_trace(tmp_path / "t.csv", reversed(TRACE))
    assert read_trace(tmp_path / "t.csv") == TRACE


def test_files_that_break_off_are_refused(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl.gz", TRACE)
    data = (tmp_path / "t.jsonl.gz").read_bytes()
    broken = (data[:-12], data[:30] + b"garbage" + data[37:])
    for bad in broken:
        (tmp_path / "t.jsonl.gz").write_bytes(bad)
        with pytest.raises(ConfigError, match="cannot be read"):
            read_trace(tmp_path / "t.jsonl.gz")
    too_long = "arrival_s,model,input_tokens,output_tokens,hash_ids\n0,a,1000000,1," + "1 " * 100_000
    (tmp_path / "t.csv").write_text(too_long)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "t.csv")


def test_a_shorter_prompt_has_fewer_hashes(tmp_path: Path) -> None:
    line = TRACE[2]
    assert line.resized(1025, 9) == replace(line, input_tokens=1025, output_tokens=9)
    assert line.resized(1024, 9).hash_ids == (0, 7)
    assert line.resized(5000, 9).hash_ids == line.hash_ids


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.jsonl or \.csv"):
        read_trace(tmp_path / "t.txt")


def test_arrivals_do_not_tell_the_scheduler_the_true_length() -> None:
    first, second, *_ = arrivals(
        TRACE, {ModelId("a"): 100, ModelId("b"): 2000}, ServiceLevel(5.0, 0.2), prefix="x"
    )
    assert (first.n_output, first.request.max_tokens, first.request.id) == (3, 90, "x0")
    assert first.request.service == ServiceLevel(5.0, 0.2)
    assert second.request.service == ServiceLevel(2.0, 0.05)
    assert (second.request.tenant, second.request.weight) == ("bank", 2.0)
