"""What an operation becomes when it is launched: offsets, blocks and tokens, as the books have them then."""

from collections.abc import Callable

import pytest

from tests.node.scenes import A, B, node_with, request
from tokenmux.core.errors import InternalError
from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Resize
from tokenmux.messages.launches import (
    Bind,
    Instruction,
    PagingLaunch,
    StepLaunch,
    StopStep,
    WeightsLaunch,
)
from tokenmux.node.launching import binding_of
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import NodeOnVirtualTime


def watched(body: NodeOnVirtualTime, look: Callable[[Instruction], None]) -> None:
    """Call `look` with every instruction to the first device at the moment in which it is sent."""
    executor = body.executor_of(0)
    send = executor.send

    def send_and_look(instructions: tuple[Instruction, ...], descriptors: object = ()) -> None:
        for instruction in instructions:
            look(instruction)
        send(instructions)

    executor.send = send_and_look  # type: ignore[method-assign, assignment]


def test_a_step_has_the_tokens_that_are_not_computed_yet_and_the_blocks_of_all() -> None:
    body = node_with(n_output={"r": 400})
    steps: list[StepLaunch] = []

    def look(instruction: Instruction) -> None:
        if not isinstance(instruction, StepLaunch):
            return
        steps.append(instruction)
        (segment,) = instruction.segments
        content, instance = body.node.contents[RequestId("r")], body.instance
        end = segment.start + len(segment.token_ids)
        assert segment.token_ids == tuple(content.token_ids[segment.start : end])
        assert segment.draws == (end == len(content.token_ids))
        assert segment.n_prompt == 50
        kv = instance.requests[RequestId("r")].kv
        blocks = [instance.ledger.blocks.block_index(h) for h in kv.device if h is not None]
        assert list(segment.blocks) == blocks
        assert 16 * len(blocks) >= end + instruction.repeat - 1
        assert len(set(blocks)) == len(blocks)

    watched(body, look)
    body.submit_at(request("r", A, body.clock.now_s(), 400))
    body.clock.run()
    assert len(steps) > 3
    assert steps[0].segments[0].start == 0
    assert not steps[-1].segments[0].start < 50


def test_weights_go_where_the_ledger_has_them_and_the_model_is_bound_there() -> None:
    body = node_with(26, n_output={"r": 10, "s": 10})
    places: dict[str, int] = {}

    def look(instruction: Instruction) -> None:
        ledger = body.instance.ledger
        match instruction:
            case WeightsLaunch(_, placed):
                for image in placed:
                    assert image.offset == ledger.arena.offset(ledger.extent(image.image))
                    assert image.n_bytes == 10 * 10**9
                    places[image.image] = image.offset
            case Bind(model, offset):
                assert offset == places[model]

    watched(body, look)
    for i, (name, model) in enumerate((("r", A), ("s", B))):
        body.submit_at(request(name, model, body.clock.now_s() + i, 10))
    body.clock.run()
    assert places.keys() == {"a", "b"}
    assert abs(places["a"] - places["b"]) >= 10 * 10**9


def test_kv_is_paged_between_the_blocks_that_the_books_of_both_sides_name() -> None:
    """A resize empties the device."""
    body = node_with(16, n_output={"r": 300})
    away: dict[str, tuple[int, ...]] = {}
    n_back = 0

    def look(instruction: Instruction) -> None:
        nonlocal n_back
        if not isinstance(instruction, PagingLaunch):
            return
        ledger = body.instance.ledger
        for paged in instruction.requests:
            assert len(paged.device) == len(paged.host)
            (request_id,) = (r for r in body.instance.requests if body.instance.requests[r].in_copy)
            table = ledger.kv[request_id]
            host = tuple(ledger.host_blocks.block_index(h) for h in table.host if h is not None)
            assert set(paged.host) <= set(host)
            if instruction.into_device:
                n_back += 1
                assert set(paged.host) <= set(away[request_id])
            else:
                away[request_id] = host

    watched(body, look)
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 300))
    while body.instance.requests.get(RequestId("r")) is None or not body.instance.ledger.blocks.used_bytes:
        body.clock.run_next()
    body.clock.run(until_s=body.clock.now_s() + 0.5)
    body.send(Resize(20 * 10**9))
    body.clock.run()
    assert away.keys() == {"r"}
    assert n_back == 1


def test_a_step_is_stopped_by_its_number() -> None:
    body = node_with(26, n_output={"r": 3000, "s": 10})
    log: list[Instruction] = []
    watched(body, log.append)
    start_s = body.clock.now_s()
    body.submit_at(request("r", A, start_s, 3000))
    body.submit_at(request("s", B, start_s + 11.0, 10))
    body.clock.run()
    steps = {i.operation for i in log if isinstance(i, StepLaunch)}
    stops = [i.operation for i in log if isinstance(i, StopStep)]
    assert stops
    assert set(stops) <= steps


def test_only_models_of_one_image_are_bound() -> None:
    body = node_with()
    two = make_model("two", images={"x": 1, "y": 1})
    with pytest.raises(InternalError, match="two has 2 images"):
        binding_of(two, body.instance)
