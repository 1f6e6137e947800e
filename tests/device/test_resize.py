"""An arena that is replaced: its memory goes back before more is taken, and a size that cannot be had
leaves the one of before."""

from collections.abc import Callable

import pytest

from tests.device.bench import FACTS, KB, Bench, RealDevice, bench_of, cuda_over, make_cpu
from tests.device.cuda.fake_gpu import FakeGpu
from tokenmux.core.errors import DoesNotFit, ProcessFailed
from tokenmux.processes import available_memory


class Attached:
    """What a host is told of the arena."""

    def __init__(self, bench: Bench) -> None:
        self.log: list[int | str] = []
        bench.host.detach = lambda: self.log.append("detached")  # type: ignore[attr-defined]
        bench.host.attach = lambda arena: self.log.append(arena.numel())  # type: ignore[attr-defined]


def over(gpu: FakeGpu) -> Callable[[Bench], RealDevice]:
    return lambda bench: cuda_over(gpu, bench)


@pytest.mark.parametrize("make", [make_cpu, over(FakeGpu())], ids=["cpu", "cuda (fake streams)"])
@pytest.mark.parametrize("n_bytes", [320 * KB, 960 * KB])
def test_the_host_lets_go_and_is_given_the_new_arena(
    make: Callable[[Bench], RealDevice], n_bytes: int
) -> None:
    with bench_of(make) as bench:
        attached = Attached(bench)
        bench.device.resize(n_bytes)
        assert attached.log == ["detached", n_bytes]
        assert bench.arena.numel() == n_bytes


def test_the_processor_takes_no_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench_of(make_cpu) as bench:
        attached = Attached(bench)
        monkeypatch.setattr(available_memory, "available_bytes", lambda: 512 * KB)
        with pytest.raises(
            DoesNotFit, match=r"960\.0 KiB of memory cannot be allocated .*512\.0 KiB are available"
        ):
            bench.device.resize(960 * KB)
        monkeypatch.setattr(available_memory, "available_bytes", lambda: None)
        with pytest.raises(DoesNotFit, match="ask for less"):
            bench.device.resize(1 << 60)
        assert attached.log == ["detached", FACTS.arena_bytes] * 2


def test_a_gpu_that_has_not_so_much_takes_back_what_it_had_or_is_broken() -> None:
    gpu = FakeGpu()
    with bench_of(over(gpu)) as bench:
        attached = Attached(bench)
        gpu.capacity = sum(gpu.allocated.values())
        with pytest.raises(DoesNotFit):
            bench.device.resize(960 * KB)
        assert attached.log == ["detached", FACTS.arena_bytes]
        gpu.capacity -= 1
        with pytest.raises(ProcessFailed, match="another program took memory"):
            bench.device.resize(960 * KB)
        gpu.allocated[bench.arena.data_ptr()] = 0  # closing gives back what is not there any more
