"""An executor in the test's process: what it is told by hand, and nothing else, happens."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.executor.executor_driver import (
    FACTS,
    KB,
    N_PROMPT,
    WAIT_S,
    Driver,
    Host,
    InProcess,
    blocks_of,
    loaded,
    prompt,
)
from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import ModelId
from tokenmux.core.sampling import Sampling
from tokenmux.device import reader
from tokenmux.executor import model_host
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    Drew,
    ExecutorAlive,
    ExecutorBroken,
    StepCompleted,
)
from tokenmux.messages.launches import (
    ArenaMove,
    Bind,
    FetchLaunch,
    MapImage,
    MoveLaunch,
    OperationId,
    PagedBlocks,
    PagingLaunch,
    PlacedImage,
    ReallocateArena,
    StepLaunch,
    StepSegment,
    StopCopy,
    StopStep,
    Unbind,
    UnmapImage,
    WeightsLaunch,
)
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.runner import Runner
from tokenmux.processes import available_memory


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    root = tmp_path_factory.mktemp("catalogue")
    catalogue = Catalogue(root)
    return [
        catalogue.register_folder(family, tiny.create(family, root / "checkpoints" / family))
        for family in ("llama", "gpt2")
    ]


@pytest.fixture
def driver() -> Iterator[Callable[[], Driver]]:
    """Makes drivers of executors on one host, and closes them."""
    host, made = Host(), []

    def make() -> Driver:
        made.append(Driver(host))
        return made[-1]

    yield make
    for each in made:
        each.close()
    host.close()


@pytest.fixture(scope="module")
def expected(entries: list[Entry]) -> dict[str, list[int]]:
    """What each model continues the prompt with, in one go."""
    host, drawn = Host(), {}
    for entry in entries:
        alone = loaded(Driver(host), entry)
        drawn[entry.name] = alone.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 30, first=0)
        alone.close()
    host.close()
    assert all(len(set(tokens)) > 3 for tokens in drawn.values())
    return drawn


@pytest.mark.parametrize("index", [0, 1], ids=["llama", "gpt2"])
def test_a_request_goes_on_at_another_executor_from_the_kv_in_host_memory(
    driver: Callable[[], Driver], entries: list[Entry], expected: dict[str, list[int]], index: int
) -> None:
    entry, here, there = entries[index], driver(), driver()
    blocks = blocks_of(entry)
    loaded(here, entry)
    drawn = here.generate(entry, prompt(), N_PROMPT, blocks, 10, first=0)
    assert not here.page(entry, blocks[:6], range(3, 9), into=False).error

    packed = here.host.content(entry)
    there.add(entry)
    there.map(entry, filled=True)
    assert not there.place(entry, offset=1024 * KB).error
    assert here.host.content(entry) == packed, "it was arranged by who read it, once"
    elsewhere = [block + 7 for block in blocks]
    assert not there.page(entry, elsewhere[:6], range(3, 9), into=True).error
    drawn += there.generate(entry, prompt() + drawn, N_PROMPT, elsewhere, 20, repeat=10)
    assert drawn == expected[entry.name]
    # Both go on with the same weights and the same KV.
    again = here.generate(entry, prompt() + drawn[:10], N_PROMPT, blocks, 20, repeat=7)
    assert drawn[:10] + again == drawn


def test_sampled_tokens_are_the_same_wherever_they_are_drawn(
    driver: Callable[[], Driver], entries: list[Entry]
) -> None:
    entry, here, there = entries[0], driver(), driver()
    sampling = Sampling(temperature=1.0, top_k=50, seed=7)
    loaded(here, entry)
    there.add(entry)
    there.map(entry, filled=True)
    assert not there.place(entry).error
    made = [
        each.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 20, repeat=5, sampling=sampling, first=0)
        for each in (here, there)
    ]
    assert made[0] == made[1]


def test_weights_that_moved_and_models_side_by_side(
    driver: Callable[[], Driver], entries: list[Entry], expected: dict[str, list[int]]
) -> None:
    llama, gpt2 = entries
    both = loaded(driver(), llama)
    both.add(gpt2)
    assert not both.fetch(gpt2).error
    assert not both.place(gpt2, offset=1024 * KB).error
    drawn = {llama.name: both.generate(llama, prompt(), N_PROMPT, blocks_of(llama), 5, first=0)}
    move = MoveLaunch(both.number(), (ArenaMove(1024 * KB, 1024 * KB - 4096, gpt2.facts.n_bytes),))
    assert not both.copied(move).error
    both.tell(Bind(gpt2.facts.id, 1024 * KB - 4096))
    drawn[gpt2.name] = both.generate(gpt2, prompt(), N_PROMPT, blocks_of(gpt2), 5, first=0)
    assert drawn == {name: tokens[:5] for name, tokens in expected.items()}


def decode(driver: Driver, entry: Entry, position: int, repeat: int) -> StepLaunch:
    """A repeated step over tokens whose KV is whatever lies there."""
    segment = StepSegment((1,), position, position, tuple(blocks_of(entry)), True, Sampling())
    return StepLaunch(driver.number(), entry.facts.id, (segment,), repeat)


def test_a_step_that_is_stopped_ends_after_its_present_iteration_and_no_other_does(
    driver: Callable[[], Driver], entries: list[Entry]
) -> None:
    one = loaded(driver(), entries[0])
    first, second, third = (decode(one, entries[0], 10, repeat=100) for _ in range(3))
    one.tell(first, second, third, StopStep(second.operation))
    one.until(Drew)
    one.tell(StopStep(first.operation))
    ended = [one.until(StepCompleted) for _ in range(3)]
    assert [completed.operation for completed in ended] == [
        first.operation,
        second.operation,
        third.operation,
    ]
    assert len(ended[0].ends_s) < 100
    assert len(ended[1].ends_s) == 1, "it was handed over early, and stopped before it began"
    assert len(ended[2].ends_s) == 100
    one.tell(StopStep(first.operation), StopStep(OperationId(12345)))  # too late, and never


def test_a_token_that_ends_a_request_ends_the_step(
    driver: Callable[[], Driver], entries: list[Entry], expected: dict[str, list[int]]
) -> None:
    entry, one = entries[0], driver()
    loaded(one, entry)
    tokens = expected[entry.name]
    stop = next(token for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
    n = tokens.index(stop)
    assert one.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 1, first=0) == tokens[:1]
    segment = StepSegment(
        (tokens[0],), N_PROMPT, N_PROMPT, tuple(blocks_of(entry)), True, Sampling(), 0, frozenset({stop})
    )
    other = StepSegment((1,), 3, 3, (blocks_of(entry)[-1],), True, Sampling())
    one.drawn = []
    one.tell(StepLaunch(one.number(), entry.facts.id, (other, segment), 25))
    completed = one.until(StepCompleted)
    assert completed.stopped == (1,)
    assert len(completed.ends_s) == n
    assert [*one.drawn[1::2], completed.token_ids[1]] == tokens[1 : n + 1]


def test_an_image_that_cannot_be_read_is_that_models_trouble(
    driver: Callable[[], Driver], tmp_path: Path, entries: list[Entry], expected: dict[str, list[int]]
) -> None:
    bad = Catalogue(tmp_path).register_folder("bad", tiny.create("llama", tmp_path / "bad-files", seed=5))
    os.truncate(bad.manifest.file, 1000)
    one = driver()
    one.add(bad)
    completed = one.fetch(bad)
    assert "cut off" in completed.error
    assert completed.code is ErrorCode.BAD_CHECKPOINT
    one.tell(UnmapImage(bad.facts.images[0].id))
    loaded(one, entries[0])
    drawn = one.generate(entries[0], prompt(), N_PROMPT, blocks_of(entries[0]), 3, first=0)
    assert drawn == expected["llama"][:3]


def test_an_image_for_which_there_is_no_memory_is_that_models_trouble(
    driver: Callable[[], Driver], entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = driver()
    one.add(entries[0])
    monkeypatch.setattr(available_memory, "available_bytes", lambda: 1 * KB)
    completed = one.fetch(entries[0])
    assert completed.code is ErrorCode.DOES_NOT_FIT
    assert "1.0 KiB are available" in completed.error
    one.tell(UnmapImage(entries[0].facts.images[0].id))
    monkeypatch.setattr(available_memory, "available_bytes", lambda: None)
    assert not one.fetch(entries[0]).error


def test_a_model_that_cannot_be_run_here_fails_where_its_weights_are_copied(
    driver: Callable[[], Driver], tmp_path: Path
) -> None:
    made = Catalogue(tmp_path).register_folder("gone", tiny.create("llama", tmp_path / "files"))
    loaded(driver(), made)
    there = driver()
    there.add(made)
    (made.path / "manifest.json").unlink()
    there.map(made, filled=True)
    completed = there.place(made)
    assert "the manifest is missing" in completed.error
    assert completed.code is ErrorCode.BAD_CHECKPOINT
    there.tell(Unbind(made.facts.id), UnmapImage(made.facts.images[0].id))


def test_files_that_hang_hold_up_one_model_at_an_executor_that_maps_its_image(
    driver: Callable[[], Driver], tmp_path: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PATIENCE_S", 0.5)
    hung = Catalogue(tmp_path).register_folder("hung", tiny.create("llama", tmp_path / "files"))
    here = loaded(driver(), hung)
    loaded(here, entries[0])
    there = driver()
    manifest = hung.path / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    for entry in (hung, entries[0]):
        there.add(entry)
        there.map(entry, filled=True)
    assert "made no progress for 0.5 s" in there.place(hung).error
    there.tell(Unbind(hung.facts.id))
    assert not there.place(entries[0]).error
    os.close(os.open(manifest, os.O_RDWR | os.O_NONBLOCK))  # who still waits hears that there is nothing


class Gate:
    """Holds up the making ready of models that are mapped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = Event()
        self.order: list[str] = []
        adopt = model_host.ModelHost.adopt_image

        def gated(
            host: model_host.ModelHost, image: str, content: memoryview, opened: Callable[[], None]
        ) -> None:
            self.order.append(image.partition("@")[0])
            assert self.open.wait(WAIT_S)
            adopt(host, image, content, opened)  # type: ignore[arg-type]

        monkeypatch.setattr(model_host.ModelHost, "adopt_image", gated)


def test_steps_go_on_while_a_mapped_model_is_made_ready_and_a_copy_of_it_waits(
    driver: Callable[[], Driver],
    entries: list[Entry],
    expected: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama, gpt2 = entries
    loaded(driver(), gpt2)
    one = loaded(driver(), llama)
    gate = Gate(monkeypatch)
    one.add(gpt2)
    one.map(gpt2, filled=True)
    image = gpt2.facts.images[0]
    copy = WeightsLaunch(one.number(), (PlacedImage(image.id, 1024 * KB, image.n_bytes),))
    one.tell(copy, Bind(gpt2.facts.id, 1024 * KB))
    drawn = one.generate(llama, prompt(), N_PROMPT, blocks_of(llama), 5, first=0)
    assert drawn == expected["llama"][:5]
    gate.open.set()
    assert not one.end_of(copy).error
    drawn = one.generate(gpt2, prompt(), N_PROMPT, blocks_of(gpt2), 5, first=0)
    assert drawn == expected["gpt2"][:5]


def test_a_model_steps_before_its_decode_step_is_recorded_and_with_the_same_tokens_after(
    driver: Callable[[], Driver],
    entries: list[Entry],
    expected: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry, may_record, recorded = entries[0], Event(), Event()
    record, share = Runner.record, Runner.share_recording

    def later(twin: Runner) -> None:
        assert may_record.wait(WAIT_S)
        record(twin)

    def shared(runner: Runner, twin: Runner) -> None:
        assert not runner.recorded
        share(runner, twin)
        assert runner.recorded, "a model that cannot be recorded says nothing here"
        recorded.set()

    monkeypatch.setattr(Runner, "record", later)
    monkeypatch.setattr(Runner, "share_recording", shared)
    one = loaded(driver(), entry)
    drawn = one.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 10, first=0)
    one.tell(UnmapImage(entry.facts.images[0].id))  # it is kept until it was recorded over
    may_record.set()
    assert recorded.wait(WAIT_S)
    drawn += one.generate(entry, prompt() + drawn, N_PROMPT, blocks_of(entry), 20, repeat=10)
    assert drawn == expected[entry.name]


def test_a_copy_that_waits_for_a_mapped_model_can_be_stopped(
    driver: Callable[[], Driver], entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(driver(), entries[0])
    one = driver()
    gate = Gate(monkeypatch)
    one.add(entries[0])
    one.map(entries[0], filled=True)
    image = entries[0].facts.images[0]
    copy = WeightsLaunch(one.number(), (PlacedImage(image.id, 0, image.n_bytes),))
    one.tell(copy, Bind(entries[0].facts.id, 0), StopCopy(copy.operation), Unbind(entries[0].facts.id))
    assert one.end_of(copy).superseded
    gate.open.set()
    assert not one.place(entries[0]).error


def test_what_is_needed_first_is_made_ready_first(
    driver: Callable[[], Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path)
    files = tiny.create("llama", tmp_path / "files")
    many = [catalogue.register_folder(name, files) for name in "abcd"]
    here, there = driver(), driver()
    gate = Gate(monkeypatch)
    for entry in many:
        here.add(entry)
        assert not here.fetch(entry).error
        there.add(entry)
        there.map(entry, filled=True)
    image = many[3].facts.images[0]
    copy = WeightsLaunch(there.number(), (PlacedImage(image.id, 0, image.n_bytes),))
    there.tell(copy, Bind(many[3].facts.id, 0))
    gate.open.set()
    assert not there.end_of(copy).error
    for entry in many[:3]:
        assert not there.place(entry).error
    assert gate.order == ["a", "d", "b", "c"]


def test_an_image_is_kept_until_the_copies_sent_before_have_ended(
    driver: Callable[[], Driver], entries: list[Entry], expected: dict[str, list[int]]
) -> None:
    entry, one = entries[0], driver()
    one.add(entry)
    assert not one.fetch(entry).error
    image = entry.facts.images[0]
    copy = WeightsLaunch(one.number(), (PlacedImage(image.id, 0, image.n_bytes),))
    one.tell(copy, Bind(entry.facts.id, 0), UnmapImage(image.id))
    assert not one.end_of(copy).error
    drawn = one.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 3, first=0)
    assert drawn == expected[entry.name][:3]


def test_a_resize_says_how_long_it_may_be_silent_and_unbinds_everything(
    driver: Callable[[], Driver], entries: list[Entry], expected: dict[str, list[int]]
) -> None:
    entry, one = entries[0], driver()
    loaded(one, entry)
    one.tell(ReallocateArena(2 * FACTS.arena_bytes))
    alive = one.until(ExecutorAlive)
    assert alive.silent_s > 60
    assert one.until(ArenaReallocated) == ArenaReallocated(2 * FACTS.arena_bytes)
    assert not one.place(entry, offset=FACTS.arena_bytes + 256).error
    drawn = one.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 3, first=0)
    assert drawn == expected[entry.name][:3]


def test_after_a_resize_a_model_must_be_bound_again(
    driver: Callable[[], Driver], entries: list[Entry]
) -> None:
    one = loaded(driver(), entries[0])
    one.tell(ReallocateArena(FACTS.arena_bytes))
    one.until(ArenaReallocated)
    one.tell(decode(one, entries[0], 10, repeat=1))
    said = one.next()
    assert isinstance(said, ExecutorBroken)
    assert "not bound to weights" in said.detail


def test_a_resize_that_does_not_fit_leaves_the_arena_of_before(
    driver: Callable[[], Driver], entries: list[Entry], expected: dict[str, list[int]]
) -> None:
    entry, one = entries[0], driver()
    loaded(one, entry)
    one.tell(ReallocateArena(1 << 60))
    answer = one.until(ArenaReallocated)
    assert answer.arena_bytes == FACTS.arena_bytes
    assert answer.code is ErrorCode.DOES_NOT_FIT
    assert not one.place(entry).error
    drawn = one.generate(entry, prompt(), N_PROMPT, blocks_of(entry), 3, first=0)
    assert drawn == expected[entry.name][:3]


def test_a_fetch_that_is_stopped_can_be_begun_again(
    driver: Callable[[], Driver], entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, one = entries[0], driver()
    may_read = Event()
    read = model_host.read_image

    def slow(*arguments: object, **named: object) -> object:
        assert may_read.wait(WAIT_S)
        return read(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(model_host, "read_image", slow)
    one.add(entry)
    one.map(entry, filled=False)
    fetch = FetchLaunch(one.number(), entry.facts.id, entry.facts.images)
    one.tell(fetch, StopCopy(fetch.operation))
    may_read.set()
    assert one.end_of(fetch).superseded
    one.tell(UnmapImage(entry.facts.images[0].id))
    assert not one.fetch(entry).error


def test_what_no_executor_can_carry_out_breaks_it_with_the_reason(
    driver: Callable[[], Driver], entries: list[Entry]
) -> None:
    one = driver()
    nowhere = StepLaunch(one.number(), ModelId("nobody"), (), 1)
    one.tell(nowhere, ReallocateArena(1 * KB))
    said = one.next()
    assert isinstance(said, ExecutorBroken)
    assert "StepLaunch cannot be carried out: KeyError('nobody')" in said.detail
    assert isinstance(one.link, InProcess)
    assert one.link.inbox.empty(), "nothing after it is carried out"


def test_a_step_that_raises_breaks_the_executor(driver: Callable[[], Driver], entries: list[Entry]) -> None:
    one = loaded(driver(), entries[0])
    off_the_grid = StepSegment((1, 2), 5, 20, tuple(blocks_of(entries[0])), False, Sampling())
    one.tell(StepLaunch(one.number(), entries[0].facts.id, (off_the_grid,), 1))
    said = one.next()
    assert isinstance(said, ExecutorBroken)
    assert "failed on the device" in said.detail


def test_an_image_without_a_descriptor_breaks_the_executor(
    driver: Callable[[], Driver], entries: list[Entry]
) -> None:
    one = driver()
    image = entries[0].facts.images[0]
    one.tell(MapImage(image.id, image.n_bytes, filled=False))
    said = one.next()
    assert isinstance(said, ExecutorBroken)
    assert "came without a descriptor" in said.detail


def test_nothing_is_said_after_it_was_closed(driver: Callable[[], Driver], entries: list[Entry]) -> None:
    one = loaded(driver(), entries[0])
    one.tell(decode(one, entries[0], 10, repeat=100))
    one.until(Drew)
    one.close()
    n = one.link.inbox.qsize()  # type: ignore[union-attr]
    one.tell(PagingLaunch(one.number(), True, (PagedBlocks(entries[0].facts.id, (), ()),)))
    assert one.link.inbox.qsize() == n  # type: ignore[union-attr]


def test_an_empty_copy_is_a_copy(driver: Callable[[], Driver], entries: list[Entry]) -> None:
    one = driver()
    one.add(entries[0])
    assert one.page(entries[0], (), (), into=True).error == ""
    assert one.page(entries[0], (), (), into=False) is not None
    assert isinstance(one.copied(MoveLaunch(one.number(), ())), CopyCompleted)
