"""Builders of models, devices, requests and instances: a test names only what it is about."""

from collections.abc import Mapping

from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.request import DEFAULT_LEVEL, Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.workload.trace import Arrival

SMALL_KV = KvShape(n_layers=1, n_kv_heads=1, head_dim=4, dtype_bytes=2, block_size=4)
"""16 bytes a token, 64 a block."""


def make_model(
    name: str,
    weight_bytes: int = 1000,
    *,
    kv: KvShape = SMALL_KV,
    max_context: int = 64,
    n_parameters: int | None = None,
    images: Mapping[str, int] | None = None,
    vocab_size: int = 0,
) -> ModelFacts:
    """A model with one image of `weight_bytes` that has its name, or with these `images` (bytes by name).

    `n_parameters` defaults to the number of 16-bit weights.
    """
    sizes = {name: weight_bytes} if images is None else images
    return ModelFacts(
        ModelId(name),
        tuple(Image(ImageId(image), n_bytes) for image, n_bytes in sizes.items()),
        kv,
        max_context,
        sum(sizes.values()) // 2 if n_parameters is None else n_parameters,
        vocab_size,
    )


def make_request(
    name: str,
    model: ModelFacts | str,
    n_prompt: int = 16,
    max_tokens: int = 32,
    arrival_s: float = 0.0,
    *,
    service: ServiceLevel = DEFAULT_LEVEL,
    tenant: str = "default",
    weight: float = 1.0,
    tenant_weight: float = 1.0,
) -> Request:
    """A request for `model`, which may be given by its name."""
    of = model.id if isinstance(model, ModelFacts) else ModelId(model)
    return Request(
        RequestId(name), of, n_prompt, max_tokens, arrival_s, service, tenant, weight, tenant_weight
    )


def make_arrival(
    name: str,
    model: ModelFacts | str,
    n_prompt: int = 16,
    *,
    n_output: int,
    arrival_s: float = 0.0,
    service: ServiceLevel = DEFAULT_LEVEL,
) -> Arrival:
    """A request for a simulation. It ends after `n_output` tokens; its limit is twice as many."""
    return Arrival(make_request(name, model, n_prompt, 2 * n_output, arrival_s, service=service), n_output)


def make_device(
    arena_bytes: int = 10_000,
    host_kv_bytes: int = 10_000,
    *,
    name: str = "imagined",
    copy_bytes_per_s: float = 1e4,
    memory_bytes_per_s: float = 1e6,
    flops_per_s: float = 1e9,
    step_overhead_s: float = 0.001,
    copy_overhead_s: float = 0.0,
    slab_bytes: int = 512,
    prefill_chunk_tokens: int = 16,
) -> DeviceFacts:
    """A device of bytes instead of gigabytes: weights of 1,000 bytes take 0.1 s to copy, and a step some
    milliseconds."""
    return DeviceFacts(
        name,
        arena_bytes,
        host_kv_bytes,
        copy_bytes_per_s,
        copy_bytes_per_s,
        memory_bytes_per_s,
        flops_per_s,
        step_overhead_s,
        copy_overhead_s,
        slab_bytes,
        prefill_chunk_tokens,
    )


def make_host(cache_bytes: int = 100_000, fetch_bytes_per_s: float = 1e4) -> HostFacts:
    """A host whose cache holds everything in a test, by default."""
    return HostFacts(cache_bytes, fetch_bytes_per_s)


def make_instance(
    device: DeviceFacts,
    policy: InstancePolicy | None = None,
    host: HostFacts | None = None,
    *,
    service: ServiceLevel = DEFAULT_LEVEL,
) -> Instance:
    """An instance of `device` on its own `host`, with the default policy and a roofline cost model."""
    host = host or make_host()
    cost = RooflineCost(device, host)
    return Instance(device, HostCache(host.cache_bytes), policy or SlackPolicy(), cost, service=service)
