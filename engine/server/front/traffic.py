"""Records traffic for capacity planning: lengths, times and names of ended requests, never their text.

If there is a prefix cache, they also say which prompts begin alike. The numbers that stand for a prompt's
cells are hashes with a secret that is drawn at the start and never told, so that texts cannot be tried
against them.

The newest stay in memory. With a path, every request is also appended to a file in the trace format
(`tokenmux.workload.trace`), which is put aside when full. Recording never fails a request: if the file cannot
be written, that is logged and recording continues in memory.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes

from tokenmux.core.errors import ConfigError
from tokenmux.core.prefix import Prefix
from tokenmux.messages.commands import Submit
from tokenmux.server.front.newest_requests import NewestRequests
from tokenmux.workload.prompt_hashes import HASH_BITS
from tokenmux.workload.trace import Trace, TraceRequest, json_line

logger = logging.getLogger(__name__)


class TrafficRecorder:
    """Records ended requests; see the module. `window` is the number of requests kept in memory, `start_s`
    the start of recording on the clock of `Request.arrival_s`, `prefix_of` gives the keys of a prompt's
    cells, if it has some."""

    def __init__(
        self,
        window: int,
        start_s: float,
        file: "TraceFile | None" = None,
        prefix_of: Callable[[Submit], Prefix | None] = lambda submit: None,
    ) -> None:
        self.window = window
        self._prefix_of = prefix_of
        self._secret = token_bytes(32)
        self._start_s = start_s
        self._newest = NewestRequests(window)
        self._file = file

    def ended(self, submit: Submit, n_output: int) -> None:
        """A request ended, for whatever reason, after `n_output` tokens. Tokens that it brought along are
        input like its prompt."""
        request = submit.request
        plain = TraceRequest(
            round(request.arrival_s - self._start_s, 6),
            request.model,
            request.n_prompt + request.n_resumed,
            max(1, n_output),
            request.tenant,
            request.service.ttft_s,
            request.service.tpot_s,
            request.weight,
        )
        line = self._hashed(plain, self._prefix_of(submit))
        self._newest.add(line)
        if self._file is not None:
            try:
                self._file.append(json_line(line))
            except OSError as error:
                logger.error("traffic is recorded in memory only from now on: %s", error)
                self.close()

    def _hashed(self, line: TraceRequest, prefix: Prefix | None) -> TraceRequest:
        """The line with what its prompt begins with."""
        if prefix is None:
            return line
        n_bytes = HASH_BITS // 8
        hashed = (blake2b(key, digest_size=n_bytes, key=self._secret).digest() for key in prefix.keys)
        ids = tuple(int.from_bytes(one, "little") for one in hashed)
        return replace(line, hash_ids=ids, hash_tokens=prefix.cell_tokens)

    def recorded(self, last_s: float, now_s: float) -> Trace:
        """Requests in memory that arrived within `last_s` (0: all), in order of arrival."""
        from_s = now_s - self._start_s - last_s if last_s else 0.0
        return sorted(
            (line for line in self._newest if line.arrival_s >= from_s), key=lambda line: line.arrival_s
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TraceFile:
    """A file of JSON lines that never holds half a line: each is appended in one write.

    When one more line would make it longer than `max_bytes` it becomes `NAME.1.jsonl`, the previous one
    `NAME.2.jsonl`, up to `keep`; the oldest is deleted. An existing file is put aside at the start too, since
    all times in one file count from one start.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        """Raises ConfigError if the file cannot be written."""
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        try:
            self._file = self._begin()
        except OSError as error:
            raise ConfigError(
                f"record_traffic.path: {path} cannot be written: {error.strerror}; name a file in a "
                "folder that exists and is writable"
            ) from error

    def append(self, line: str) -> None:
        data = line.encode()
        if self._n_bytes and self._n_bytes + len(data) > self._max_bytes:
            os.close(self._file)
            self._file = self._begin()
        os.write(self._file, data)
        self._n_bytes += len(data)

    def close(self) -> None:
        os.close(self._file)

    def _begin(self) -> int:
        if self._path.exists() and self._path.stat().st_size:
            for number in range(self._keep, 0, -1):
                older = self._path if number == 1 else self._aside(number - 1)
                if older.exists():
                    older.replace(self._aside(number))
        self._n_bytes = 0
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o640)

    def _aside(self, number: int) -> Path:
        return self._path.with_suffix(f".{number}{self._path.suffix}")
