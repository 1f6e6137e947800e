"""Kernels are there before a model's first step: compiled in a child process while it is registered, and
waited for by its fetch."""

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import pytest
import torch
import triton

from tests.device.bench import FACTS
from tokenmux.core.errors import TokenmuxError
from tokenmux.core.sampling import Sampling
from tokenmux.executor.model_host import ModelHost
from tokenmux.executor.warming import Warmer, compile_in_a_child
from tokenmux.kernels.absent import absent_device
from tokenmux.kernels.kv_page.launch import kv_page
from tokenmux.kernels.tiles import step_tiles
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.processes.monotonic_clock import MonotonicClock

WAIT_S = 60.0
FAMILIES = ("llama", "gemma2", "gpt_oss")
"""The plain case, windows with capped scores, sinks."""


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    root = tmp_path_factory.mktemp("catalogue")
    made = Catalogue(root / "catalogue")
    for family in FAMILIES:
        made.register_folder(family, tiny.create(family, root / family, dtype=torch.bfloat16))
    return made


def host_with(warmer: Warmer) -> ModelHost:
    host = ModelHost(FACTS.cell_tokens, MonotonicClock(), warmer)
    host.attach(torch.zeros(FACTS.arena_bytes, dtype=torch.uint8))
    return host


def test_a_model_is_fetched_when_its_kernels_are_compiled(catalogue: Catalogue) -> None:
    begun: SimpleQueue[Sequence[Path]] = SimpleQueue()
    may_end = Event()

    def compile(paths: Sequence[Path]) -> None:
        begun.put(paths)
        assert may_end.wait(WAIT_S)

    host, entry = host_with(Warmer(compile)), catalogue.stored.entries()[0]
    host.add(entry.facts, str(entry.path))
    assert begun.get(timeout=WAIT_S) == [entry.path], "at registration, and not at the fetch"
    image = entry.facts.images[0]
    buffer = bytearray(image.n_bytes)
    read = Event()

    def fetch() -> None:
        host.read_image(entry.facts.id, image, memoryview(buffer), lambda _: None)
        read.set()

    thread = Thread(target=fetch)
    thread.start()
    assert not read.wait(0.05)
    may_end.set()
    assert read.wait(WAIT_S)
    thread.join()


def test_what_is_registered_meanwhile_is_compiled_together_and_a_failure_holds_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batches: list[Sequence[Path]] = []
    started, may_end = Event(), Event()

    def compile(paths: Sequence[Path]) -> None:
        batches.append(paths)
        started.set()
        assert may_end.wait(WAIT_S)
        if Path("bad") in paths:
            raise TokenmuxError("no compiler")

    warmer = Warmer(compile)
    warmer.begin(Path("first"))
    assert started.wait(WAIT_S)
    for name in ("bad", "other", "bad"):
        warmer.begin(Path(name))
    warmer.wait(Path("unknown"))
    may_end.set()
    for name in ("first", "bad", "other"):
        warmer.wait(Path(name))
    assert batches == [[Path("first")], [Path("bad"), Path("other")]]
    assert "compiled at their first launch: no compiler" in caplog.text


@pytest.mark.timeout(300)
def test_steps_and_paging_find_every_kernel_that_the_child_compiled(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compile_in_a_child(90)([*(entry.path for entry in catalogue.stored.entries()), tmp_path / "gone"])
    assert (tmp_path / "cache").is_dir()
    missing: list[object] = []
    found: list[object] = []

    def listen(*, src: object, cache_hit: bool, **_: object) -> None:
        (found if cache_hit else missing).append(src)

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    with absent_device(90):
        for entry in catalogue.stored.entries():
            step(entry)
    assert missing == []
    assert len(found) >= 9


def step(entry: Entry) -> None:
    """Prompts, decode rows, draws of every kind, and a block paged out."""
    shape = entry.facts.kv
    runner = Runner(entry.skeleton(), shape, prefill_chunk_tokens=256, tiles=step_tiles(90, shape.head_dim))
    runner.bind(torch.zeros(entry.facts.n_bytes, dtype=torch.uint8))
    kv = torch.zeros(
        16, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim, dtype=torch.bfloat16
    )
    segments = [
        Segment(list(range(40)), 0, 40, [0, 1, 2], sampling=Sampling(0.8, top_p=0.9, top_k=4)),
        Segment(list(range(100)), 0, 100, list(range(3, 10))),
        Segment([1], 20, 4, [11, 12], sampling=Sampling(), min_tokens=40, stop_token_ids=frozenset({3})),
    ]
    runner.step(runner.prepare(segments, kv))
    raw = kv.view(-1).view(torch.uint8)
    kv_page(raw, raw, torch.zeros(2, 1, dtype=torch.int64), block_bytes=shape.block_bytes)


def test_a_child_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TokenmuxError, match="compiling process failed: status 1"):
        compile_in_a_child(90)([tmp_path])
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    with pytest.raises(TokenmuxError, match="longer than 0 s"):
        compile_in_a_child(90, timeout_s=0.2)([tmp_path])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends children with their parent")
def test_a_child_dies_with_its_node(tmp_path: Path) -> None:
    """The parent is killed while its child waits for a compiler that never answers."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    stall = (
        "import os, time\n"
        "from tokenmux.executor import warming\n"
        "def stall(*_, **__):\n"
        f"    with open({str(fifo)!r}, 'w') as file: file.write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "warming.warm_entries = stall\n"
    )
    (tmp_path / "parent.py").write_text(
        "from pathlib import Path\n"
        "from tokenmux.executor import warming\n"
        "run = warming.subprocess.run\n"
        f"stall = {stall!r}\n"
        "warming.subprocess.run = lambda command, **rest: run([*command[:2], stall + command[2]], **rest)\n"
        "warmer = warming.Warmer(warming.compile_in_a_child(90))\n"
        "warmer.begin(Path('x'))\n"
        "warmer.wait(Path('x'))\n"
    )
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path)
    child = int(fifo.read_text())
    ended = select.poll()
    ended.register(os.pidfd_open(child), select.POLLIN)
    parent.kill()
    parent.wait()
    assert ended.poll(1000 * WAIT_S), "the child outlived its parent"
