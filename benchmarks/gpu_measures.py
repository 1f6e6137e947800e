"""The section of `benchmarks.gpu` with the measurements that the design waits for, on the day of a GPU.

captured_pass     one decode pass of an 8B model captured in a graph and replayed, against the same launched
                  one by one
page_locking      the longest time without a launch while memory is page-locked beside it: cold, touched, in
                  pieces, an image
alignment         one image bound at several offsets of an arena: the same bits?
beside_paging     a captured decode pass while blocks are paged by kernel: as many programs as chunks, 16,
                  and a priority
profile           what one decode step launches and how long each kernel takes; the whole of it in profile.txt
sleeping          whether a decode step waits for the device anywhere but on its own event
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import Qwen2Config

from benchmarks.gpu_models import SHAPES, Loaded, load
from benchmarks.gpu_place import Item, Place
from tokenmux.device.cuda.gpu import Gpu, TorchGpu
from tokenmux.device.cuda.locked_memory import IMAGE_PIECE_BYTES, LockedMemory
from tokenmux.device.memory import Memory, SharedMemory
from tokenmux.kernels.kv_page.launch import kv_page
from tokenmux.models.catalogue import tiny
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.kernel_step import KernelBatch
from tokenmux.processes import shared_memory

GB = 1 << 30


def measures(place: Place) -> list[Item]:
    """The quick items, and those that can break the least, come first."""
    small = tiny.FAMILIES["llama"]() if place.interpreted else SHAPES["llama-3.2-1b"]
    large = tiny.FAMILIES["llama"]() if place.interpreted else SHAPES["llama-3.1-8b"]
    on_gpu = 0.0 if place.interpreted else 1.0
    return [
        Item("alignment", partial(alignment, place), 3 * on_gpu),
        Item("sleeping", partial(sleeping, place, small), 3 * on_gpu),
        Item("profile", partial(profile, place, small), 5 * on_gpu),
        Item("beside_paging", partial(beside_paging, place, small), 8 * on_gpu),
        *(
            Item(f"page_locking.{kind}", partial(page_locking, place, kind), 8 * on_gpu)
            for kind in ("touched_in_pieces", "touched", "cold", "cold_in_pieces")
        ),
        Item("page_locking.as_images", partial(locking_images, place), 8 * on_gpu),
        Item("captured_pass.small", partial(captured_pass, place, small), 5 * on_gpu),
        Item("captured_pass.8b", partial(captured_pass, place, large), 12 * on_gpu),
    ]


# ── steps to measure ────────────────────────────────────────────────────────────────────────────────────────


def decoding(place: Place, loaded: Loaded, batch: int, context: int, steps: int) -> KernelBatch:
    """A decode step of `batch` rows at a context that is filled in, not computed. It can be advanced
    `steps` times."""
    shape = loaded.shape
    n_blocks = shape.blocks_for(context + steps + 2)
    kv = loaded.kv(batch * n_blocks, place.device)
    kv.normal_()
    order = torch.randperm(len(kv), generator=torch.Generator().manual_seed(0)).view(batch, n_blocks)
    prepared = loaded.runner.prepare(
        [Segment([7], context, context, blocks) for blocks in order.tolist()], kv
    )
    assert isinstance(prepared, KernelBatch)
    return prepared


@torch.inference_mode()
def step_times(place: Place, loaded: Loaded, prepared: KernelBatch, n: int) -> list[float]:
    """Seconds of `n` decode steps, drawing included, after three that do not count."""
    taken = []
    for _ in range(n + 3):
        began = time.perf_counter()
        drawn = loaded.runner.step(prepared)
        prepared.advance([token for token in drawn if token is not None])
        taken.append(time.perf_counter() - began)
    return sorted(taken[3:])


def warmed_up(place: Place, config: Any, steps: int) -> tuple[Loaded, KernelBatch]:
    """A model and a decode step that ran a few times; it can be advanced up to `steps` times in all."""
    loaded = load(place, config, place.dtypes[0], grid_of(place))
    prepared = decoding(place, loaded, *batch_and_context(place), steps)
    step_times(place, loaded, prepared, 1)
    return loaded, prepared


def grid_of(place: Place) -> int:
    return 16 if place.interpreted else 512


def batch_and_context(place: Place) -> tuple[int, int]:
    return (2, 20) if place.interpreted else (8, 1024)


# ── (a) captured passes ─────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def captured_pass(place: Place, config: Any) -> Mapping[str, Any]:
    """Batches of 1 and 32: seconds launched and replayed, and whether replaying gives the same bits."""
    loaded = load(place, config, place.dtypes[0], grid_of(place))
    found: dict[str, Any] = {}
    for batch in (1, 2) if place.interpreted else (1, 32):
        prepared = decoding(place, loaded, batch, batch_and_context(place)[1], 4)
        ((_, on_device),) = list(prepared.passes())
        runner = loaded.runner

        def forward(on_device: Any = on_device, runner: Any = runner) -> torch.Tensor:
            return runner._forward(on_device.token_ids, on_device.positions, on_device.logit_rows, on_device)

        expected = forward().clone()
        replay, logits = capture(place, forward)
        replay()
        place.settle()
        found[f"same_bits_{batch}"] = bool(torch.equal(expected, logits))
        found[f"launched_{batch}_s"] = median(timed(place, forward, 8))
        found[f"replayed_{batch}_s"] = median(timed(place, replay, 12))
    floor = loaded.skeleton.n_bytes
    return {**found, "weight_bytes": floor, "replayed_1_gb_per_s": floor / found["replayed_1_s"] / 1e9}


def capture(
    place: Place, work: Callable[[], torch.Tensor], priority: int = 0
) -> tuple[Callable[[], object], torch.Tensor]:
    """A graph of `work` to be replayed, and the place of its result. If nothing can be captured, `work`
    itself."""
    if place.interpreted:
        result = work()
        return work, result
    stream = torch.cuda.Stream(priority=priority)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = work()

    def replay() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    return replay, result


def timed(place: Place, work: Callable[[], object], n: int) -> list[float]:
    taken = []
    for _ in range(2 if place.interpreted else n):
        place.settle()
        began = time.perf_counter()
        work()
        place.settle()
        taken.append(time.perf_counter() - began)
    return taken[1:]


# ── (b) page-locking beside launches ────────────────────────────────────────────────────────────────────────


def page_locking(place: Place, kind: str) -> Mapping[str, Any]:
    """The longest gap between launches while 4 GB are registered, and the times to register and
    unregister."""
    n_bytes = (4 << 20) if place.interpreted else 4 * GB
    piece = n_bytes if not kind.endswith("pieces") else n_bytes // 16
    memory = Memory(n_bytes, touch=kind.startswith("touched"))
    lock, unlock = registration(place)
    done = threading.Event()
    spent: dict[str, float] = {}
    pieces = range(memory.address, memory.address + n_bytes, piece)

    def register() -> None:
        try:
            began = time.perf_counter()
            for address in pieces:
                lock(address, piece)
            spent["register_s"] = time.perf_counter() - began
            began = time.perf_counter()
            for address in pieces:
                unlock(address)
            spent["unregister_s"] = time.perf_counter() - began
        finally:
            done.set()

    one = torch.zeros(1, device=place.device)
    quiet = longest_gap(place, one, ends=threading.Event(), seconds=0.05 if place.interpreted else 0.5)
    thread = threading.Thread(target=register)
    thread.start()
    busy = longest_gap(place, one, ends=done, seconds=30.0)
    thread.join()
    memory.close()
    if "unregister_s" not in spent:
        raise AssertionError(f"memory could not be page-locked: {spent}")
    return {
        "gb": n_bytes / 1e9,
        "piece_mb": piece / 1e6,
        "longest_gap_s": busy,
        "longest_gap_without_s": quiet,
        "register_gb_per_s": n_bytes / spent["register_s"] / 1e9,
        **spent,
    }


def locking_images(place: Place) -> Mapping[str, Any]:
    """The longest gap between launches while an image of 4 GB is page-locked as the device does it, piece by
    piece, and unlocked again."""
    n_bytes = (4 << 20) if place.interpreted else 4 * GB
    gpu: Gpu = NothingToLock() if place.interpreted else TorchGpu()  # type: ignore[assignment]
    descriptor = shared_memory.create_shared("image", n_bytes)
    try:
        image = SharedMemory(descriptor, n_bytes)
    finally:
        os.close(descriptor)
    image.as_tensor().fill_(1)
    done, spent = threading.Event(), []

    def lock() -> None:
        try:
            began = time.perf_counter()
            locked = LockedMemory(gpu, image, IMAGE_PIECE_BYTES)
            if locked.locked:
                spent.append(time.perf_counter() - began)
            began = time.perf_counter()
            locked.close()
            spent.append(time.perf_counter() - began)
        finally:
            done.set()

    one = torch.zeros(1, device=place.device)
    thread = threading.Thread(target=lock)
    thread.start()
    gap = longest_gap(place, one, ends=done, seconds=30.0)
    thread.join()
    if len(spent) < 2:
        raise AssertionError("the image could not be page-locked")
    return {"gb": n_bytes / 1e9, "longest_gap_s": gap, "lock_s": spent[0], "unlock_s": spent[1]}


class NothingToLock:
    """Takes the place of a GPU for `LockedMemory` if there is none."""

    def lock(self, address: int, n_bytes: int) -> bool:
        return True

    def unlock(self, address: int) -> None:
        pass


def longest_gap(place: Place, one: torch.Tensor, ends: threading.Event, seconds: float) -> float:
    """Launch something small again and again until `ends` is set or the time is up. Returns the longest
    time between two launches."""
    ends_s = time.perf_counter() + seconds
    last, longest, launched = time.perf_counter(), 0.0, 0
    while not ends.is_set() and last < ends_s:
        one.add_(1)
        launched += 1
        if launched % 64 == 0:
            place.settle()
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
    place.settle()
    return max(longest, time.perf_counter() - last)


def registration(place: Place) -> tuple[Callable[[int, int], None], Callable[[int], None]]:
    if place.interpreted:
        return (lambda _address, _n_bytes: None), (lambda _address: None)
    runtime = torch.cuda.cudart()

    def lock(address: int, n_bytes: int) -> None:
        status = int(runtime.cudaHostRegister(address, n_bytes, 3))
        if status:
            raise RuntimeError(f"cudaHostRegister of {n_bytes} bytes: CUDA error {status}")

    def unlock(address: int) -> None:
        status = int(runtime.cudaHostUnregister(address))
        if status:
            raise RuntimeError(f"cudaHostUnregister: CUDA error {status}")

    return lock, unlock


# ── (c) alignment ───────────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def alignment(place: Place) -> Mapping[str, Any]:
    """A model with biases, its image at offsets that differ modulo 256: the offsets at which logits have
    other bits than at 0."""
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=128 if place.interpreted else 2048,
        intermediate_size=256 if place.interpreted else 5504,
        num_hidden_layers=2,
        num_attention_heads=4 if place.interpreted else 16,
        num_key_value_heads=2,
    )
    dtype = place.dtypes[0]
    loaded = load(place, config, dtype, grid_of(place))
    n = loaded.skeleton.n_bytes
    weights = [tensor.clone() for tensor in loaded.skeleton.tensors]
    arena = torch.zeros(n + 4096, dtype=torch.uint8, device=place.device)
    offsets = (0, 64, 128, 192, 256, 512)
    found: dict[str, list[torch.Tensor]] = {}
    for offset in offsets:
        start = -arena.data_ptr() % 512 + offset
        loaded.runner.bind(arena[start : start + n])
        for tensor, value in zip(loaded.skeleton.tensors, weights, strict=True):
            tensor.copy_(value)
        found[str(offset)] = some_logits(place, loaded)
    different = [
        offset
        for offset, logits in found.items()
        if not all(torch.equal(a, b) for a, b in zip(logits, found["0"], strict=True))
    ]
    result = {"bytes": n, "offsets": str(offsets), "other_bits_at": str(different)}
    if {"256", "512"} & set(different):
        raise AssertionError(f"logits differ between multiples of 256 bytes: {result}")
    return result


def some_logits(place: Place, loaded: Loaded) -> list[torch.Tensor]:
    """The logits of a prompt, and of a decode row after it."""
    n = 20 if place.interpreted else 300
    kv = loaded.kv(loaded.shape.blocks_for(n + 1), place.device)
    blocks = list(range(len(kv)))
    runner = loaded.runner
    segments = (Segment(list(range(n)), 0, n, blocks), Segment([5], n, n, blocks))
    return [runner.logits(runner.prepare([segment], kv))[0].clone() for segment in segments]


# ── (d) paging beside steps ─────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def beside_paging(place: Place, config: Any) -> Mapping[str, Any]:
    """Seconds of a captured decode pass alone, and beside page-outs by kernel under four settings; and the
    bandwidth of the paging.

    Captured, since launches from Python beside a thread that pages would show how the two share the
    interpreter.
    """
    loaded = load(place, config, place.dtypes[0], grid_of(place))
    batch, context = batch_and_context(place)
    prepared = decoding(place, loaded, batch, context, 4)
    ((_, on_device),) = list(prepared.passes())
    runner = loaded.runner

    def forward() -> torch.Tensor:
        return runner._forward(on_device.token_ids, on_device.positions, on_device.logit_rows, on_device)

    found: dict[str, Any] = {}
    for name, programs, priority in (
        ("alone", None, 0),
        ("all_programs", 0, 0),
        ("all_programs_priority", 0, -1),
        ("16_programs", 16, 0),
        ("16_programs_priority", 16, -1),
    ):
        replay, _ = capture(place, forward, priority)
        if programs is None:
            taken = timed(place, replay, 40)
        else:
            with paging(place, programs or None) as moved:
                taken = timed(place, replay, 40)
            found[f"{name}_paged_gb_per_s"] = moved["gb_per_s"]
        found[f"{name}_s"] = median(taken)
        found[f"{name}_p90_s"] = sorted(taken)[len(taken) * 9 // 10]
    return found


@contextmanager
def paging(place: Place, programs: int | None) -> Iterator[dict[str, float]]:
    """A thread that pages out blocks of 256 KiB on its own stream, one launch of 16 MiB after another, two in
    flight."""
    size, n = (1 << 10, 4) if place.interpreted else (256 << 10, 64)
    device = torch.zeros(n * size, dtype=torch.uint8, device=place.device)
    host = torch.zeros(n * size, dtype=torch.uint8, pin_memory=not place.interpreted)
    offsets = torch.stack([torch.randperm(n) * size for _ in range(2)]).to(place.device)
    ends, moved, errors = threading.Event(), {"gb_per_s": 0.0}, []
    place.settle()

    def launch() -> None:
        kv_page(host, device, offsets, block_bytes=size, programs=programs)

    def page() -> None:
        began, n_bytes = time.perf_counter(), 0
        try:
            in_flight: list[torch.cuda.Event] = []
            with torch.cuda.stream(torch.cuda.Stream()):
                while not ends.is_set():
                    launch()
                    event = torch.cuda.Event(blocking=True)
                    event.record()
                    in_flight.append(event)
                    if len(in_flight) == 2:
                        in_flight.pop(0).synchronize()
                        n_bytes += n * size
                for event in in_flight:
                    event.synchronize()
        except Exception as error:  # noqa: BLE001 - raised where the steps are measured
            errors.append(error)
        moved["gb_per_s"] = n_bytes / (time.perf_counter() - began) / 1e9

    if place.interpreted:  # which is not thread-safe
        launch()
        yield moved
        return
    thread = threading.Thread(target=page)
    thread.start()
    try:
        yield moved
    finally:
        ends.set()
        thread.join()
    if errors:
        raise errors[0]


# ── (e) where the time of a step goes ───────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def profile(place: Place, config: Any) -> Mapping[str, Any]:
    loaded, prepared = warmed_up(place, config, 8)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not place.interpreted:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        drawn = loaded.runner.step(prepared)
    averages = profiled.key_averages()
    order = "self_cpu_time_total" if place.interpreted else "self_device_time_total"
    (place.out / "profile.txt").write_text(
        averages.table(sort_by=order, row_limit=60, max_name_column_width=80)
    )
    profiled.export_chrome_trace(str(place.out / "profile.json"))
    # An operator has the time of its kernels as well: counted by the kernels alone.
    kernels = [event for event in averages if event.device_type is torch._C._autograd.DeviceType.CUDA]
    on_device = sum(event.self_device_time_total for event in kernels) / 1e6
    return {
        "rows": len(drawn),
        "launches": sum(
            event.count for event in averages if "launchkernel" in event.key.lower().replace("_", "")
        ),
        "kernels": sum(event.count for event in kernels),
        "device_s": on_device,
        "host_s": sum(event.self_cpu_time_total for event in averages) / 1e6,
        "longest_kernel": max(kernels, key=lambda e: e.self_device_time_total).key[:60]
        if kernels
        else "none",
    }


@torch.inference_mode()
def sleeping(place: Place, config: Any) -> Mapping[str, Any]:
    """Make torch raise at every operation that waits for the device, and compare the thread's processor
    time with the step's."""
    loaded, prepared = warmed_up(place, config, 30)
    if not place.interpreted:
        torch.cuda.set_sync_debug_mode("error")
    try:
        began, busy = time.perf_counter(), time.thread_time()
        taken = step_times(place, loaded, prepared, 2 if place.interpreted else 20)
        spent, busy = time.perf_counter() - began, time.thread_time() - busy
    finally:
        if not place.interpreted:
            torch.cuda.set_sync_debug_mode("default")
    return {"step_s": median(taken), "share_of_core": busy / spent, "cores": os.cpu_count() or 0}
