"""What every device promises, tested on each that can run here: completion, overlap, order, failure, and
bytes that stay true."""

from collections.abc import Iterator
from unittest.mock import ANY

import pytest

from tests.device.bench import ALL, KB, WAIT_S, WITH_BYTES, Bench, bench_of, content, model, stamp
from tokenmux.core.effects import INTERRUPT, RequestEnded
from tokenmux.core.event import Arrived, CopyDone, ModelAdded, StepDone
from tokenmux.core.facts import ImageId, ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Chunk, Compact, Drop, Evict, Fetch, PageIn, PageOut, Step
from tokenmux.core.request import RequestId
from tokenmux.messages.launches import OperationId
from tokenmux.testing import make_request
from tokenmux.testing.started_operations import make_started_activation


@pytest.fixture(params=ALL)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with bench_of(request.param) as bench:
        yield bench


@pytest.fixture(params=WITH_BYTES)
def real(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Over a device that has bytes."""
    with bench_of(request.param) as bench:
        yield bench


def test_every_operation_completes_once_and_the_books_balance(bench: Bench) -> None:
    bench.add(model("a", 200 * KB), model("b", 250 * KB))
    bench.load("a")
    bench.instance.apply(Arrived(bench.now_s(), make_request("r", "a")))
    step = bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    assert isinstance(step, StepDone)
    assert len(step.ends_s) == 1
    bench.run(PageOut((RequestId("r"),)))
    bench.run(Fetch(ModelId("b")), Drop(RequestId("r")))
    bench.run(Activate(ModelId("b")), Evict(ModelId("a")))
    assert bench.instance.models[ModelId("a")].residency is Residency.HOST
    bench.run(Activate(ModelId("a")))
    bench.run(PageIn((RequestId("r"),)))
    assert bench.instance.requests[RequestId("r")].kv.on_device
    bench.instance.check_integrity()
    assert bench.instance.is_idle


def test_a_repeated_step_reports_each_iteration(bench: Bench) -> None:
    bench.add(model("a", 200 * KB))
    bench.load("a")
    bench.instance.apply(Arrived(bench.now_s(), make_request("r", "a")))
    bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    done = bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 16, 1),), repeat=5))
    assert isinstance(done, StepDone)
    assert len(done.ends_s) == 5
    assert sorted(done.ends_s) == list(done.ends_s)
    assert bench.instance.requests[RequestId("r")].n_drawn == 6


def test_weights_arrive_whole_and_survive_compaction(real: Bench) -> None:
    a, b, c = model("a", 200 * KB), model("b", 150 * KB), model("c", 300 * KB)
    real.add(a, b, c)
    real.load("a", "b")
    real.run(Fetch(ModelId("c")))
    assert real.image_on_device(a) == content(a.images[0])
    real.run(Compact(c.n_bytes), Evict(ModelId("a")))
    assert real.instance.ledger.arena.offset(real.instance.ledger.extent(ImageId("b"))) == 0
    real.run(Activate(ModelId("c")))
    assert real.image_on_device(b) == content(b.images[0])
    assert real.image_on_device(c) == content(c.images[0])


def test_weights_survive_a_slide_by_less_than_a_chunk(real: Bench) -> None:
    a, b = model("a", 8 * KB), model("b", 300 * KB)
    real.add(a, b)
    real.load("a", "b")
    real.run(Compact(336 * KB), Evict(ModelId("a")))
    assert real.instance.ledger.arena.offset(real.instance.ledger.extent(ImageId("b"))) == 0
    assert real.image_on_device(b) == content(b.images[0])


def test_kv_comes_back_as_it_left(real: Bench) -> None:
    real.add(model("a", 200 * KB))
    real.load("a")
    for name in ("r", "other"):
        real.instance.apply(Arrived(real.now_s(), make_request(name, "a", n_prompt=40)))
        for start in (0, 16, 32):
            real.run(Step(ModelId("a"), (Chunk(RequestId(name), start, min(16, 40 - start)),)))
    written = [[stamp(position)] for position in range(40)]
    assert real.stamps("r", 40) == written
    real.run(PageOut((RequestId("r"),)))
    before = real.blocks_of("r")
    real.run(PageOut((RequestId("other"),)), Drop(RequestId("r")))
    real.overwrite(before)
    real.run(PageIn((RequestId("r"),)))
    assert real.stamps("r", 40) == written


def test_kv_is_written_through_while_a_step_adds_to_it(real: Bench) -> None:
    real.add(model("a", 200 * KB))
    real.load("a")
    real.instance.apply(Arrived(real.now_s(), make_request("r", "a", n_prompt=20)))
    real.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    real.run(Step(ModelId("a"), (Chunk(RequestId("r"), 16, 4),)))
    real.host.in_step.clear()
    real.host.step_may_end.clear()
    real.start(Step(ModelId("a"), (Chunk(RequestId("r"), 20, 1),)))
    assert real.host.in_step.wait(WAIT_S)
    assert isinstance(real.run(PageOut((RequestId("r"),))), CopyDone), "it waits for no step"
    real.host.step_may_end.set()
    assert isinstance(real.finish(), StepDone)
    real.run(PageOut((RequestId("r"),)))
    real.run(PageIn((RequestId("r"),)), Drop(RequestId("r")))
    assert real.stamps("r", 21) == [[stamp(position)] for position in range(21)]


def test_copies_overlap_with_a_step(real: Bench) -> None:
    real.add(model("a", 200 * KB), model("b", 200 * KB))
    real.load("a")
    real.instance.apply(Arrived(real.now_s(), make_request("r", "a")))
    real.host.step_may_end.clear()
    real.start(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    assert real.host.in_step.wait(WAIT_S)
    real.run(Fetch(ModelId("b")))
    real.run(Activate(ModelId("b")))
    real.host.step_may_end.set()
    assert isinstance(real.finish(), StepDone)


def test_a_fetch_that_is_superseded_ends_at_its_next_piece(real: Bench) -> None:
    real.add(model("a", 200 * KB))
    real.host.may_read.clear()
    real.start(Fetch(ModelId("a")))
    real.stop_copy(0)
    real.host.may_read.set()
    done = real.finish()
    assert isinstance(done, CopyDone)
    assert done.superseded
    assert real.instance.models[ModelId("a")].residency is Residency.DISK
    real.instance.check_integrity()
    real.load("a")


def test_an_activation_that_is_superseded_ends_at_its_next_chunk_and_can_be_begun_again(real: Bench) -> None:
    a = model("a", 200 * KB)
    real.add(a)
    real.run(Fetch(ModelId("a")))
    with real.held(Channel.COPY_IN):  # so that it comes in time on every device
        real.start(Activate(ModelId("a")))
        real.stop_copy(1)
    done = real.finish()
    assert isinstance(done, CopyDone)
    assert done.superseded
    assert real.instance.models[ModelId("a")].residency is Residency.HOST
    real.instance.check_integrity()
    assert real.run(Activate(ModelId("a"))) == CopyDone(real.instance.now_s, 2)
    assert real.image_on_device(a) == content(a.images[0])


def test_an_interrupted_burst_ends_after_its_present_iteration(real: Bench) -> None:
    real.add(model("a", 200 * KB))
    real.load("a")
    real.instance.apply(Arrived(real.now_s(), make_request("r", "a")))
    real.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    real.host.in_step.clear()
    real.host.step_may_end.clear()
    real.start(Step(ModelId("a"), (Chunk(RequestId("r"), 16, 1),), repeat=20))
    assert real.host.in_step.wait(WAIT_S)
    real.script.interrupt_on = (Arrived,)
    assert INTERRUPT in real.instance.apply(Arrived(real.now_s(), make_request("second", "a")))
    real.device.stop_step(OperationId(3))
    real.host.step_may_end.set()
    done = real.finish()
    assert isinstance(done, StepDone)
    assert len(done.ends_s) == 1


def test_an_image_that_cannot_be_read_fails_its_requests_and_nothing_else(real: Bench) -> None:
    real.add(model("a", 200 * KB), model("bad", 100 * KB))
    real.load("a")
    real.host.bad_images.add(ImageId("bad"))
    real.instance.apply(Arrived(real.now_s(), make_request("good", "a")))
    real.instance.apply(Arrived(real.now_s(), make_request("doomed", "bad")))
    done = real.run(Fetch(ModelId("bad")))
    assert isinstance(done, CopyDone)
    assert "cut off" in done.error
    ended = [effect for effect in real.effects if isinstance(effect, RequestEnded)]
    assert [(e.record.request.id, e.detail) for e in ended] == [("doomed", "bad is cut off")]
    assert RequestId("good") in real.instance.requests
    real.instance.check_integrity()


def test_a_step_that_raises_is_reported_and_the_channel_lives(real: Bench) -> None:
    real.add(model("a", 200 * KB))
    real.load("a")
    real.instance.apply(Arrived(real.now_s(), make_request("r", "a")))
    real.host.step_error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        real.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))


def test_an_image_that_another_process_has_fetched_is_made_ready_and_copied(real: Bench) -> None:
    a = model("a", 200 * KB)
    real.map(a.images[0], filled=True)
    real.instance.apply(ModelAdded(0.0, a))
    real.instance.ledger.place(a)
    real.carry_out(make_started_activation(1, a))
    assert real.inbox.get(timeout=WAIT_S) == CopyDone(ANY, 1)
    assert real.host.adopted == [ImageId("a")]
    assert real.image_on_device(a) == content(a.images[0])


def test_steps_and_copies_run_while_an_image_is_made_ready_and_its_own_copy_waits(real: Bench) -> None:
    a, b = model("a", 100 * KB), model("b", 100 * KB)
    real.add(a, b)
    real.load("a")
    real.instance.apply(Arrived(real.now_s(), make_request("r", "a")))
    real.host.may_read.clear()
    real.map(b.images[0], filled=True)
    real.instance.ledger.place(b)
    real.carry_out(make_started_activation(1000, b))
    real.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    real.run(PageOut((RequestId("r"),)))
    assert not real.host.adopted
    real.host.may_read.set()
    done = real.inbox.get(timeout=WAIT_S)
    assert done == CopyDone(ANY, 1000)
    assert real.image_on_device(b) == content(b.images[0])


def test_an_image_of_another_process_that_cannot_be_used_fails_its_copy_and_nothing_else(real: Bench) -> None:
    bad, good = model("bad", 100 * KB), model("good", 100 * KB)
    real.add(bad, good)
    real.host.bad_images.add(ImageId("bad"))
    real.map(bad.images[0], filled=True)
    real.instance.ledger.place(bad)
    real.carry_out(make_started_activation(1000, bad))
    assert real.inbox.get(timeout=WAIT_S) == CopyDone(ANY, 1000, "bad is cut off")
    real.device.unmap_image(ImageId("bad"))
    real.load("good")
    assert real.image_on_device(good) == content(good.images[0])


def test_an_image_that_is_given_up_before_it_was_made_ready_disturbs_nobody(real: Bench) -> None:
    a, b = model("a", 100 * KB), model("b", 100 * KB)
    real.add(a, b)
    real.host.may_read.clear()
    for facts in (a, b):
        real.map(facts.images[0], filled=True)
        real.device.unmap_image(facts.images[0].id)
    real.host.may_read.set()
    real.load("a")
    assert ImageId("b") not in real.host.adopted, "nobody waits for it"
    assert real.image_on_device(a) == content(a.images[0])
