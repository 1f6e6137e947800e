"""The devices in `pool.yaml`, and the host memory that they share."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.messages.setups import PagedKv
from tokenmux.server.yaml_lines import YamlPath
from tokenmux.server.yaml_values import Count, Section, Size, in_short

MAX_DEVICES = 1024
_GPU = re.compile(r"\d{1,4}|(GPU|MIG)-[0-9A-Za-z/.-]{1,80}")


IN_COMMON = ("kind", "paged_kv", "prefill_chunk_tokens")
"""What all devices of a pool have in common: it decides tokens, or how KV lies in host memory."""


def _gpu(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not _GPU.fullmatch(text):
        raise ValueError(
            f"{in_short(value)} is not a GPU: write its index, such as 0, or its UUID, "
            "such as GPU-0f3c..., as `nvidia-smi -L` shows them"
        )
    return text


GpuName = Annotated[str, BeforeValidator(_gpu)]


class DeviceConfig(Section):
    """A device, or several alike, and its memory budget."""

    kind: DeviceKind = "cpu"
    """`cpu` is a virtual GPU in host memory."""
    count: Annotated[int, Field(ge=1, le=MAX_DEVICES)] = 1
    """Number of devices like this one. Those of kind `cuda` take the GPUs that no other entry names, in
    order."""
    gpu: GpuName | None = None
    """Which of the GPUs that CUDA shows (CUDA_VISIBLE_DEVICES), by index or UUID. Default: the next one that
    no entry names."""
    arena: Size | None = None
    """Device memory for weights and KV cache. Default: 2 GiB on a CPU, 85% of the free memory of a GPU."""
    paged_kv: PagedKv = "exact"
    """`int8` halves the bytes that paging moves. Requests that were paged then no longer yield exactly the
    same tokens."""
    slab: Size | None = None
    """Unit in which models get memory for KV cache, at least two KV blocks of each. The default depends on
    the size of the smallest arena and the models."""
    prefill_chunk_tokens: Count | None = None
    """A longer prompt is computed in pieces of this many tokens. Default: 512 on a CPU, 2048 on a GPU."""


class SingleDeviceConfig(DeviceConfig):
    """The device of a pool with one kind of device, and its host memory (`HostConfig`)."""

    host_cache: Size | None = None
    """As `host.cache`, which goes before it."""
    host_kv: Size | None = None
    """As `host.kv`, which goes before it."""


class HostConfig(Section):
    """Memory of the machine that all devices share."""

    cache: Size | None = None
    """Keeps weights near the devices. Default: 4 GiB, or with a GPU half of what is available, if that is
    more; in any case no more than the machine has left."""
    kv: Size | None = None
    """Paged-out KV cache. Default: 1 GiB for each device, or with GPUs a tenth of what is available for each
    (at most three tenths), if that is more."""


Entries = Sequence[tuple[YamlPath, DeviceConfig]]
"""What describes devices, each with its place."""


def device_entries(single: SingleDeviceConfig, listed: Sequence[DeviceConfig] | None) -> Entries:
    """`devices`, or else `device`."""
    if not listed:
        return ((("device",), single),)
    return tuple((("devices", index), entry) for index, entry in enumerate(listed))


def contradictions_of_devices(
    single: SingleDeviceConfig, listed: Sequence[DeviceConfig] | None
) -> Iterator[tuple[YamlPath, str]]:
    """Values of `device` and `devices` that are wrong only in combination. What the machine has is checked
    later (`tokenmux.server.machine`)."""
    entries = device_entries(single, listed)
    given = single.model_fields_set
    if listed and given:
        text = (
            f"device: `devices` is given too: give one of them. Add {', '.join(sorted(given))} to an entry "
            "of `devices`, or to `host`"
        )
        yield ("device", min(given)), text
    if listed is not None and not listed:
        yield ("devices",), "devices: there must be at least one, such as `- kind: cpu`"
    n_devices = sum(entry.count for _, entry in entries)
    if n_devices > MAX_DEVICES:
        yield ("devices",), f"devices: these are {n_devices}, and a pool has at most {MAX_DEVICES}"
    for name in IN_COMMON:
        values = {getattr(entry, name) for _, entry in entries}
        if len(values) > 1:
            text = (
                f"devices: their {name} differs: {' and '.join(sorted(map(str, values)))}. A request may go "
                "on at any device of its pool and keeps its tokens and KV: make them alike, or take two "
                "servers"
            )
            yield ("devices",), text
    named: dict[str, str] = {}
    for place, entry in entries:
        dotted = ".".join(map(str, place))
        cure = f"{dotted}.kind is {entry.kind}: leave it out, or set `kind: cuda`"
        if entry.paged_kv == "int8" and entry.kind != "cuda":
            text = f"{dotted}.paged_kv: int8 is computed by a GPU's kernel, and {cure}"
            yield (*place, "paged_kv"), text
        if entry.gpu is None:
            continue
        if entry.kind != "cuda":
            yield (*place, "gpu"), f"{dotted}.gpu: only a GPU has a number, and {cure}"
        elif entry.count > 1:
            text = (
                f"{dotted}.count: one GPU is one device, and {dotted}.gpu names it: leave out one of the two"
            )
            yield (*place, "count"), text
        elif entry.gpu in named:
            text = f"{dotted}.gpu: {named[entry.gpu]} has GPU {entry.gpu} already: each needs one of its own"
            yield (*place, "gpu"), text
        named.setdefault(entry.gpu, dotted)
