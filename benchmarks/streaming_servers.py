"""What the benchmarks of streams share: servers in processes of their own, what a round took of them, and the
comparison of a front with a bare server of the same streams."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

import psutil

from benchmarks import arguments, report
from tokenmux.demo.real_checkpoint import obtain_demo_checkpoint
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.server.front.model_text import OutputText

MODEL = "smollm2"
N_STREAMS, N_PROMPT, N_OUTPUT = 200, 32, 80
STEP_S = 0.06
"""3,300 messages a second, a third of what one process can send: hardly any deltas are merged."""
TEXT = (
    "The quick brown fox jumps over the lazy dog, while seven wizards, who had never seen a fox before, "
    "wondered aloud whether it would return tomorrow; nobody answered, and the evening went on as usual."
)


class Server:
    """A server in a process of its own, which prints its port; use it as a context."""

    def __init__(self, module: str, arguments: tuple[object, ...]) -> None:
        """`module` has a function `serve` that takes these arguments."""
        code = f"from benchmarks.{module} import serve; serve{arguments!r}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.target = f"127.0.0.1:{int(self._process.stdout.readline())}"
        self._measured = psutil.Process(self._process.pid)

    def processor_s(self) -> float:
        """Processor time of this process alone so far."""
        times = self._measured.cpu_times()
        return times.user + times.system

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._process:  # closes its input, which ends it
            pass


@dataclass(frozen=True, slots=True)
class Streams:
    """What all streams of a round took."""

    n_messages: int
    processor_s: float
    gap_p99_s: float
    """Between two messages of a stream."""

    @property
    def us_per_message(self) -> float:
        return 1e6 * self.processor_s / self.n_messages


@contextmanager
def served_text(cache: Path) -> Iterator[tuple[str, Sequence[int], OutputText]]:
    """A catalogue in a folder with `MODEL`, the ids of `TEXT`, and what makes text of them."""
    with tempfile.TemporaryDirectory(prefix="tokenmux-streams-") as folder:
        entry = Catalogue(Path(folder)).register_folder(MODEL, obtain_demo_checkpoint(cache))
        yield folder, entry.encoder().encode(TEXT), entry.tokenizer().detokenizer()


async def rounds(
    stream_all: Callable[[Server], Awaitable[Streams]], own: Server, bare: Server, n_rounds: int
) -> list[tuple[Streams, Streams]]:
    """Pairs of a round of one's own server and one of the bare server. A first pair is dropped."""
    with own, bare:
        pairs = [(await stream_all(own), await stream_all(bare)) for _ in range(n_rounds + 1)]
    return pairs[1:]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a comparison is reported: `server` and `message` are what it calls its own, `over` and `sent` are
    metrics, and `name` is that of the benchmark."""

    name: str
    server: str
    message: str
    over: str
    sent: str
    targets: Mapping[str, report.Target]

    def run(
        self, about: str | None, measure: Callable[[Path, int], Awaitable[list[tuple[Streams, Streams]]]]
    ) -> None:
        """Read the arguments of a program that is `about` this, measure, and report."""
        options = arguments.read_arguments(about, quick="a look: a third of the rounds")

        async def measured() -> list[tuple[Streams, Streams]]:
            return await measure(options.cache, 3 if options.quick else 8)

        self.show(asyncio.run(measured()))

    def show(self, pairs: list[tuple[Streams, Streams]]) -> None:
        """Report pairs of rounds, of one's own server and of the bare one."""
        metrics = report.spread(self.over, [bare.us_per_message / own.us_per_message for own, bare in pairs])
        metrics[self.sent] = median(own.n_messages / bare.n_messages for own, bare in pairs)
        rows: list[list[object]] = []
        for name, taken in ((self.server, [own for own, _ in pairs]), ("bare", [bare for _, bare in pairs])):
            us, gap = f"{name}_us_per_{self.message}", f"{name}_gap_ms_p99"
            metrics[us] = median(streams.us_per_message for streams in taken)
            metrics[gap] = 1e3 * median(streams.gap_p99_s for streams in taken)
            rows.append([name, median(streams.n_messages for streams in taken), metrics[us], metrics[gap]])
        low, middle, high = (f"{metrics[self.over + end]:.2f}" for end in ("_p20", "", "_p80"))
        report.table(
            f"{N_STREAMS} streams x {1 / STEP_S:.0f}/s: {middle} ({low} to {high}) of a bare server",
            ["server", f"{self.message}s", f"us a {self.message}", "gap p99 ms"],
            rows,
        )
        report.finish(self.name, metrics, self.targets)
