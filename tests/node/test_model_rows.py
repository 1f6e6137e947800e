"""What a node tells of its models is what asking every device about every model would give."""

from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.node.scenes import GB, SHAPE, A, B, node_with, request
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Channel, Step
from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Cancel, Command, Load, Pause, Pin, Register, Unload
from tokenmux.messages.reports import ModelStatus
from tokenmux.node.model_rows import ModelRows
from tokenmux.scheduler.metrics.counters import MODEL_TABLE, ModelCounters
from tokenmux.scheduler.metrics.summing import summed
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import NodeOnVirtualTime

C = ModelId("c")
MODELS = (A, B, C)
NAMES = ("r", "s", "t", "u")
NEAR = list(Residency)
MOMENTS = st.floats(0, 30) | st.floats(0, 3)
COMMANDS: list[Command] = [
    *(Cancel(RequestId(name)) for name in NAMES),
    *(Pause(RequestId(name)) for name in NAMES),
    *(
        command
        for model in (A, B)
        for command in (Load(model), Unload(model), Pin(model, True), Pin(model, False))
    ),
]


def asked_one_by_one(body: NodeOnVirtualTime, model: ModelId) -> ModelStatus:
    instances = {index: device.instance for index, device in body.node.devices.items()}
    states = {index: instance.models[model] for index, instance in instances.items()}
    n_running = 0
    for instance in instances.values():
        step = instance.in_flight(Channel.COMPUTE)
        if isinstance(step, Step) and step.model == model:
            stepping = [instance.requests[chunk.request] for chunk in step.chunks]
            n_running += sum(each.to_end is None and not each.is_paused for each in stepping)
    n_here = sum(len(state.waiting) + len(state.decoding) for state in states.values())
    parts = [instance.metrics.models.get(model, ModelCounters()) for instance in body.pool.instances]
    return ModelStatus(
        model,
        max((state.residency for state in states.values()), key=NEAR.index),
        any(state.pinned for state in states.values()),
        n_here - n_running,
        n_running,
        sum(len(state.away) for state in states.values()),
        sum(one.n_overdue(body.clock.now_s()) for state in states.values() for one in state.requests()),
        MODEL_TABLE.row(summed(parts)),
        next((state.load_error for state in states.values() if state.load_error), ""),
        any(state.wanted is False for state in states.values()),
        tuple(index for index, state in states.items() if state.residency is Residency.RESIDENT),
    )


@given(
    st.lists(st.tuples(MOMENTS, st.sampled_from(COMMANDS)), max_size=12),
    st.lists(st.floats(0, 3), max_size=2),
    st.floats(0, 8),
)
@settings(max_examples=50, deadline=None)
def test_rows_are_those_of_all_devices(
    commands: list[tuple[float, Command]], kills: list[float], repaired_s: float
) -> None:
    body = node_with(16, 16, 24, n_output=dict.fromkeys(NAMES, 300))
    start_s = body.clock.now_s()
    rows = ModelRows({})

    def look() -> None:
        instances = {index: device.instance for index, device in body.node.devices.items()}
        metrics = [instance.metrics for instance in body.pool.instances]
        told, n_used = rows.rows(instances, metrics, body.clock.now_s(), start_s)
        assert told == tuple(asked_one_by_one(body, model) for model in MODELS)
        assert n_used == len(
            {model for m in metrics for model, c in m.models.items() if c.last_asked_s >= start_s}
        )

    for i, name in enumerate(NAMES):
        body.submit_at(request(name, MODELS[i % 3], start_s + 3 * i, 300))
    for at_s, command in commands:
        body.clock.call_at(start_s + at_s, partial(body.send, command))
    for at_s in kills:
        body.clock.call_at(start_s + at_s, body.executor_of(0).kill)
    body.unreadable.add(C)
    body.send(Register(make_model(C, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB), path=""))
    body.clock.call_at(start_s + repaired_s, body.unreadable.clear)
    for half_seconds in range(62):
        body.clock.call_at(start_s + half_seconds / 2, look)
    body.clock.run(until_s=start_s + 31)
