"""The trace format: one line per request, with lengths and times but no text. Simulations and load tests
replay it.

JSON lines (`.jsonl`), one object per line, or CSV (`.csv`) with a heading line; the same fields in both:

    arrival_s       seconds from the start of the trace
    model           the model's name in the catalogue
    input_tokens    prompt length
    output_tokens   how many tokens it drew (a replay stops there)
    tenant          optional, "default"
    ttft_s, tpot_s  optional service level of this request, seconds
    weight          optional, 1.0
    hash_ids        optional, numbers that stand for the prompt's beginning, block by block
    hash_tokens     optional, 512: tokens of such a block

Prompts whose `hash_ids` begin alike begin alike (`tokenmux.workload.prompt_hashes`); in CSV the numbers are
separated by spaces. Lines may come in any order. The file may be compressed (`.gz`). A running server records
the same format (docs/traces.md).
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import IO, Any, cast

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import ModelId
from tokenmux.core.file_faults import reading_fault
from tokenmux.core.prefix import Prefix
from tokenmux.core.request import DEFAULT_TENANT, Request, RequestId, ServiceLevel
from tokenmux.workload.prompt_hashes import HASH_TOKENS, check_hashes, hashed_prefix

TraceRow = dict[str, Any]
"""One line of a file, by its fields."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace. A service level of None is filled in by the replay."""

    arrival_s: float
    model: str
    input_tokens: int
    output_tokens: int
    tenant: str = DEFAULT_TENANT
    ttft_s: float | None = None
    tpot_s: float | None = None
    weight: float = 1.0
    hash_ids: tuple[int, ...] = ()
    """A number for each block of the prompt, from its beginning; the last block may be shorter."""
    hash_tokens: int = HASH_TOKENS

    def resized(self, input_tokens: int, output_tokens: int) -> "TraceRequest":
        """The request with other lengths. Of its `hash_ids` those remain that a shorter prompt still has."""
        n_blocks = -(-input_tokens // self.hash_tokens)
        ids = self.hash_ids[:n_blocks]
        return replace(self, input_tokens=input_tokens, output_tokens=output_tokens, hash_ids=ids)


Trace = list[TraceRequest]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as a replay submits it. It stops by itself after `n_output` tokens, which no scheduler may
    know."""

    request: Request
    n_output: int


def arrivals(
    trace: Iterable[TraceRequest],
    max_context: Mapping[ModelId, int],
    service: ServiceLevel | None = None,
    prefix: str = "",
    cell_tokens: int | None = None,
) -> list[Arrival]:
    """Turn a trace into requests, numbered in order. `max_tokens` is what the context leaves, not the true
    length.

    With `cell_tokens`, those of the devices, there is a prefix cache: `hash_ids` become keys of cells.
    """
    made = []
    service = service or ServiceLevel()
    for number, line in enumerate(trace):
        model = ModelId(line.model)
        level = ServiceLevel(
            service.ttft_s if line.ttft_s is None else line.ttft_s,
            service.tpot_s if line.tpot_s is None else line.tpot_s,
        )
        room = max(line.output_tokens, max_context[model] - line.input_tokens)
        request = Request(
            RequestId(f"{prefix}{number}"),
            model,
            line.input_tokens,
            room,
            line.arrival_s,
            level,
            line.tenant,
            line.weight,
            prefix=None if cell_tokens is None else _prefix(line, cell_tokens),
        )
        made.append(Arrival(request, line.output_tokens))
    return made


def without_prefix(arrival: Arrival) -> Arrival:
    """The arrival in a pool without a prefix cache."""
    return replace(arrival, request=replace(arrival.request, prefix=None))


def _prefix(line: TraceRequest, cell_tokens: int) -> Prefix | None:
    """Keys of the prompt's cells; tenants share nothing, as in a pool that does not join them."""
    salts, n_prompt = (line.tenant,), line.input_tokens
    found = hashed_prefix(ModelId(line.model), salts, line.hash_ids, line.hash_tokens, n_prompt, cell_tokens)
    return found if found.keys else None


def read_trace(path: Path, translated: Callable[[TraceRow], TraceRow] = dict) -> Trace:
    """Read a `.jsonl` or `.csv` file, possibly `.gz`, in order of arrival. Raises ConfigError that names
    the faulty line. `translated` makes a row of this format from one of another."""
    read = _reader_of(path)
    try:
        with open_text(path) as lines:
            trace = [_parsed(row, f"trace {path}, line {number}", translated) for number, row in read(lines)]
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path} cannot be read: {reading_fault(error)}") from error
    return sorted(trace, key=lambda line: line.arrival_s)


def write_trace(path: Path, trace: Iterable[TraceRequest]) -> None:
    """Write a `.jsonl` or `.csv` file, possibly `.gz`."""
    is_json = _reader_of(path) is _json_lines
    with open_text(path, "wt") as file:
        if is_json:
            file.writelines(map(json_line, trace))
        else:
            table = csv.DictWriter(file, list(_DEFAULTS))
            table.writeheader()
            table.writerows(
                {name: _csv_text(value) for name, value in _values(line).items()} for line in trace
            )


def json_line(line: TraceRequest) -> str:
    """One line of a `.jsonl` file, with its line end; fields with their default value are left out."""
    row = {name: value for name, value in _values(line).items() if value != _DEFAULTS.get(name)}
    return json.dumps(row) + "\n"


def open_text(path: Path, mode: str = "rt") -> IO[str]:
    """Open a text file, through gzip if its name says so. What marks a file of a spreadsheet as UTF-8 (the
    byte order mark) is not read."""
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, mode, encoding=encoding, newline=""))
    return cast("IO[str]", path.open(mode, encoding=encoding, newline=""))


_REQUIRED = ("arrival_s", "model", "input_tokens", "output_tokens")
_DEFAULTS: dict[str, object] = {
    **dict.fromkeys(_REQUIRED),
    "tenant": DEFAULT_TENANT,
    "ttft_s": None,
    "tpot_s": None,
    "weight": 1.0,
    "hash_ids": (),
    "hash_tokens": HASH_TOKENS,
}


def _csv_text(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else value


def _values(line: TraceRequest) -> dict[str, object]:
    return {field.name: getattr(line, field.name) for field in fields(line)}


def _reader_of(path: Path):  # type: ignore[no-untyped-def]
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    match suffix:
        case ".jsonl":
            return _json_lines
        case ".csv":
            return _csv_lines
    raise ConfigError(f"trace {path}: the name must end in .jsonl or .csv, with or without .gz")


def _json_lines(lines: IO[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, error


def _csv_lines(lines: IO[str]) -> Iterator[tuple[int, object]]:
    for number, row in enumerate(csv.DictReader(lines), start=2):
        known = {name: value for name, value in row.items() if value not in ("", None)}
        if isinstance(ids := known.get("hash_ids"), str):
            known["hash_ids"] = ids.split()
        yield number, known


def _parsed(row: object, where: str, translated: Callable[[TraceRow], TraceRow]) -> TraceRequest:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: not a JSON object ({row})")
    try:
        row = translated(row)
    except KeyError as error:
        raise ConfigError(f"{where}: missing field {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from error
    unknown = [str(name) for name in row if name not in _DEFAULTS]
    missing = [name for name in _REQUIRED if name not in row]
    if unknown or missing:
        raise ConfigError(f"{where}: missing fields {missing}, unknown fields {unknown}")
    try:
        ttft_s, tpot_s = row.get("ttft_s"), row.get("tpot_s")
        line = TraceRequest(
            float(row["arrival_s"]),
            str(row["model"]),
            _whole("input_tokens", row["input_tokens"]),
            _whole("output_tokens", row["output_tokens"]),
            str(row.get("tenant", DEFAULT_TENANT)),
            None if ttft_s is None else float(ttft_s),
            None if tpot_s is None else float(tpot_s),
            float(row.get("weight", 1.0)),
            _hash_ids(row.get("hash_ids", ())),
            _whole("hash_tokens", row.get("hash_tokens", HASH_TOKENS)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from error
    times = [line.arrival_s, *(time for time in (line.ttft_s, line.tpot_s) if time is not None)]
    if not all(isfinite(time) and time >= 0 for time in times):
        raise ConfigError(f"{where}: times must be seconds, 0 or more")
    if line.input_tokens < 1 or line.output_tokens < 1 or not 0 < line.weight < inf:
        raise ConfigError(f"{where}: token counts must be at least 1, and the weight above 0")
    check_hashes(line.hash_ids, line.hash_tokens, line.input_tokens, where)
    return line


def _whole(name: str, value: Any) -> int:
    """A count: JSON has numbers, CSV text."""
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{name} must be a whole number, and is {value}")
    return int(value)


def _hash_ids(ids: object) -> tuple[int, ...]:
    """JSON has numbers, CSV text."""
    if not isinstance(ids, list | tuple):
        raise TypeError("hash_ids must be a list of whole numbers")
    if any(isinstance(one, bool) or not isinstance(one, int | str) for one in ids):
        raise TypeError("hash_ids must be whole numbers")
    return tuple(map(int, ids))
