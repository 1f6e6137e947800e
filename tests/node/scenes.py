"""A node on virtual time with one device, or several, and two models of which a device holds one."""

from tokenmux.core.facts import DeviceFacts, KvShape, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.messages.commands import Register
from tokenmux.messages.reports import Acknowledged, Finished
from tokenmux.testing import make_model, make_request
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

GB = 10**9
SHAPE = KvShape(n_layers=16, n_kv_heads=8, head_dim=64, dtype_bytes=2, block_size=16)
A, B = ModelId("a"), ModelId("b")


def facts_of(arena_gigabytes: int) -> DeviceFacts:
    return DeviceFacts("imagined", arena_gigabytes * GB, 8 * GB, 1e9, 1e9, 1e12, 1e14, slab_bytes=64 << 20)


def request(name: str, of: ModelId, at_s: float = 0.0, n_output: int = 100) -> Request:
    return make_request(name, of, n_prompt=50, max_tokens=n_output, arrival_s=at_s)


def node_with(
    *arena_gigabytes: int, n_output: dict[str, int] | None = None, start_s: float = 0.0
) -> NodeOnVirtualTime:
    """A node with devices of these sizes (by default one), whose executors are ready."""
    outputs = {RequestId(name): n for name, n in (n_output or {}).items()}
    setup = setup_of(*map(facts_of, arena_gigabytes or (16,)))
    body = NodeOnVirtualTime(setup, outputs, start_s=start_s)
    for name in (A, B):
        model = make_model(name, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB)
        body.send(Register(model, path=""))
    body.clock.run()
    return body


def answers(body: NodeOnVirtualTime) -> list[str]:
    return [message.error for message in body.said if isinstance(message, Acknowledged)]


def ends(body: NodeOnVirtualTime) -> dict[str, FinishReason]:
    finished = [message for message in body.said if isinstance(message, Finished)]
    assert len({end.request for end in finished}) == len(finished)
    return {end.request: end.reason for end in finished}
