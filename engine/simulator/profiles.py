"""Measured step times as small tables of fitted numbers, and the cost model that gives them to a simulation.

A step that prefills T tokens (with `pairs` query-key pairs) and decodes B rows over C tokens of context takes

    max(decode_ms, prefill_ms + prefill_us T + pair_ns S) + row_us B + context_us C

with S = 2 pairs (the sum of squared lengths, for whole prompts), but never less than physics allows: weights
and KV are read once, and the matrix units do not exceed their peak. The mixed step follows chunked prefill
(Agrawal et al., Sarathi-Serve, OSDI 2024): decode rows beside a prompt cost their own work and no second
reading of the weights.

Sources of the fits: 6B to 14B, vLLM in fp16 and eager mode, Aegaeon artifact (SOSP 2025, Zenodo
10.5281/zenodo.16673199, Apache-2.0), mean relative error 2 to 6% (H20 decode 10 to 13%). Llama2-70B,
splitwise-sim @ 8f99e7dc (MIT; Patel et al., ISCA 2024), relative error 1 to 4% for decode and 5 to 16% for
prefill. Those measurements hardly determine the context term of models with grouped-query attention, so here
it is KV bytes over memory bandwidth. If the quadratic term is negative (the rate improves with length), no
prefill is assumed to be faster per token than one of 4096 tokens, the longest measured. Keys beyond a token's
4096 nearest cost their arithmetic on top: a prompt of 100,000 tokens takes two to three times as long as by
the fit alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from tokenmux.core.cost import StepWork, burst_ends_s
from tokenmux.core.facts import DeviceFacts, ModelFacts
from tokenmux.core.plan import Channel
from tokenmux.simulator.hardware import DataSheet


@dataclass(frozen=True, slots=True)
class StepFit:
    """Milliseconds, microseconds per token or row, nanoseconds per pair."""

    prefill_ms: float
    prefill_us: float
    pair_ns: float
    decode_ms: float
    context_us: float
    row_us: float


_FITS: dict[tuple[str, int, str], StepFit] = {
    # (GPU, devices, architecture): prefill_ms, prefill_us, pair_ns, decode_ms, context_us, row_us
    ("A10", 1, "yi-1.5-6b"): StepFit(6.93, 168.56, 5.20, 28.15, 0.12, 178.3),
    ("A10", 1, "llama2-7b"): StepFit(6.36, 207.88, 6.71, 31.80, 0.92, 246.5),
    ("A10", 1, "qwen2.5-7b"): StepFit(4.62, 214.16, 8.98, 33.35, 0.10, 209.0),
    ("A100", 1, "yi-1.5-6b"): StepFit(4.96, 59.52, -0.04, 10.51, 0.04, 122.4),
    ("A100", 1, "llama2-7b"): StepFit(5.37, 70.05, 0.06, 11.74, 0.34, 160.1),
    ("A100", 1, "qwen2.5-7b"): StepFit(5.75, 59.40, -0.47, 12.21, 0.09, 122.3),
    ("A100", 1, "yi-1.5-9b"): StepFit(4.24, 79.65, 0.17, 15.41, 0.05, 131.3),
    ("A100", 1, "llama2-13b"): StepFit(14.78, 121.01, -2.35, 20.19, 0.28, 208.1),
    ("H20", 1, "qwen2.5-7b"): StepFit(10.64, 99.35, -1.06, 11.75, 0.014, 136.6),
    ("H20", 1, "yi-1.5-9b"): StepFit(13.58, 128.61, 1.03, 14.50, 0.025, 159.9),
    ("H20", 1, "llama2-13b"): StepFit(16.35, 192.08, 0.32, 21.47, 0.21, 276.3),
    ("H800", 1, "llama2-7b"): StepFit(3.38, 23.82, -1.08, 8.77, 0.19, 108.6),
    ("H800", 1, "qwen2.5-7b"): StepFit(3.32, 23.10, -0.02, 8.38, 0.09, 93.1),
    ("H800", 1, "yi-1.5-9b"): StepFit(3.46, 30.70, -1.08, 11.62, 0.16, 88.8),
    ("H800", 1, "llama2-13b"): StepFit(3.24, 46.45, -0.42, 12.78, 0.37, 130.3),
    ("H800", 1, "qwen1.5-14b"): StepFit(3.35, 45.82, 0.68, 13.24, 0.25, 133.9),
    ("H100", 1, "qwen2.5-7b"): StepFit(2.92, 22.60, -0.68, 9.07, 0.017, 67.7),
    ("H100", 1, "yi-1.5-9b"): StepFit(3.57, 28.77, -0.75, 13.77, 0.029, 70.5),
    ("H100", 1, "llama2-13b"): StepFit(3.28, 42.18, -0.53, 12.51, 0.22, 99.5),
    ("A100", 2, "llama2-70b"): StepFit(22.23, 356.73, -0.43, 56.36, 0.25, 388.1),
    ("A100", 4, "llama2-70b"): StepFit(14.16, 236.86, 1.45, 43.52, 0.32, 207.9),
    ("A100", 8, "llama2-70b"): StepFit(21.53, 150.24, 1.97, 44.16, 0.31, 200.0),
    ("H100", 2, "llama2-70b"): StepFit(20.10, 130.61, 3.98, 36.75, 0.072, 405.6),
    ("H100", 4, "llama2-70b"): StepFit(19.02, 88.49, 3.04, 28.89, 0.079, 272.1),
    ("H100", 8, "llama2-70b"): StepFit(22.70, 64.88, 3.52, 29.80, 0.178, 201.6),
}

_LONGEST_MEASURED = 4096

_ATTENTION_SHARE = 0.4
"""Share of the data sheet's arithmetic that attention over a long prompt reaches (FlashAttention-2 on an
H100: 0.35 to 0.4)."""

_LAYER_MS = 0.16
"""Fixed cost of a layer in eager mode: H100 decode times less the reading of the weights (9.07 ms with 28
layers, 13.77 with 48)."""

_FLOPS_SHARE = {"A10": 0.55, "A100": 0.75, "H20": 0.95, "H800": 0.66, "H100": 0.68}
"""Share of the data sheet's arithmetic that prefill reaches: 2 x parameters / (prefill_us x peak), mean of
the fits above."""

_MEMORY_SHARE = 0.85
"""Share of memory bandwidth that a decode step reaches. A100 and A10, whose decode is bound by it, reach
0.80 to 0.88."""

_GROUP_MS_PER_LAYER = 0.15
"""What the two all-reduces of a layer add in a tensor-parallel group: H800, 7B to 14B, two devices against
one."""


def step_fit(gpu: DataSheet, n_devices: int, architecture: str, model: ModelFacts) -> StepFit:
    """The measured fit, or one derived from the model's size if there is no measurement."""
    return _FITS.get((gpu.name, n_devices, architecture)) or derived_fit(gpu, n_devices, model)


def derived_fit(gpu: DataSheet, n_devices: int, model: ModelFacts) -> StepFit:
    """A roofline with the efficiencies that the measured models reach on this device."""
    layer_ms = _LAYER_MS + (_GROUP_MS_PER_LAYER if n_devices > 1 else 0.0)
    bytes_per_s = n_devices * gpu.memory_bytes_per_s * _MEMORY_SHARE
    fixed_ms = layer_ms * model.kv.n_layers
    read_ms = model.n_bytes / bytes_per_s * 1e3
    prefill_us = 2e6 * model.n_parameters / (n_devices * gpu.flops_per_s * _FLOPS_SHARE[gpu.name])
    return StepFit(
        prefill_ms=fixed_ms,
        prefill_us=prefill_us,
        pair_ns=0.0,
        decode_ms=fixed_ms + read_ms,
        context_us=model.kv.token_bytes / bytes_per_s * 1e6,
        row_us=max(60.0, prefill_us),
    )


class ProfiledCost:
    """A cost model of fits. It does not learn: `observe_*` do nothing."""

    def __init__(
        self,
        device: DeviceFacts,
        fits: Iterable[tuple[ModelFacts, StepFit]],
        fetch_bytes_per_s: float,
        slower: float = 1.0,
    ) -> None:
        """`slower` multiplies every step time."""
        self._device = device
        self._steps = {model.id: _Coefficients(fit, model, device, slower) for model, fit in fits}
        self._s_per_byte = {
            Channel.COPY_IN: 1 / device.copy_in_bytes_per_s,
            Channel.COPY_OUT: 1 / device.copy_out_bytes_per_s,
            Channel.FETCH: 1 / fetch_bytes_per_s,
        }

    def step_s(self, model: ModelFacts, work: StepWork) -> float:
        return self._steps[model.id].seconds(work)

    def burst_ends_s(
        self, model: ModelFacts, work: StepWork, repeat: int, start_s: float
    ) -> tuple[float, ...]:
        """`tokenmux.core.cost.burst_ends_s` of this cost model, to the last bit, in a tenth of the time."""
        if work.prefill_tokens or repeat == 1:
            return burst_ends_s(self, model, work, repeat, start_s)
        return self._steps[model.id].decode_ends_s(work.decode_rows, work.context_tokens, repeat, start_s)

    def copy_s(self, channel: Channel, n_bytes: int) -> float:
        return self._device.copy_overhead_s + n_bytes * self._s_per_byte[channel]

    def move_s(self, n_bytes: int) -> float:
        return self._device.copy_overhead_s + 2 * n_bytes / self._device.memory_bytes_per_s

    def observe_step(self, model: ModelFacts, work: StepWork, seconds: float) -> None:
        """Do nothing."""

    def observe_copy(self, channel: Channel, n_bytes: int, seconds: float) -> None:
        """Do nothing."""


def _attention_flops(model: ModelFacts) -> float:
    """Arithmetic of one pair of query and key over all layers. The width follows from the size: a layer has
    about 12 parameters for each of its squared width."""
    n_layers = model.kv.n_layers
    return 4.0 * n_layers * sqrt(model.n_parameters / (12 * n_layers))


class _Coefficients:
    """One model's fit in seconds, with its floors."""

    __slots__ = (
        "context_s",
        "decode_s",
        "far_pair_s",
        "flops_s",
        "kv_read_s",
        "long_token_s",
        "pair_s",
        "prefill_s",
        "read_s",
        "row_s",
        "token_s",
    )

    def __init__(self, fit: StepFit, model: ModelFacts, device: DeviceFacts, slower: float) -> None:
        self.prefill_s = slower * fit.prefill_ms * 1e-3
        self.token_s = slower * fit.prefill_us * 1e-6
        self.pair_s = slower * 2 * fit.pair_ns * 1e-9
        self.long_token_s = slower * (
            fit.prefill_us * 1e-6 + _LONGEST_MEASURED * min(0.0, fit.pair_ns) * 1e-9
        )
        self.decode_s = slower * fit.decode_ms * 1e-3
        self.context_s = slower * fit.context_us * 1e-6
        self.row_s = slower * fit.row_us * 1e-6
        self.read_s = model.n_bytes / device.memory_bytes_per_s
        self.kv_read_s = model.kv.token_bytes / device.memory_bytes_per_s
        self.flops_s = 2 * model.n_parameters / device.flops_per_s
        self.far_pair_s = slower * _attention_flops(model) / (_ATTENTION_SHARE * device.flops_per_s)

    def seconds(self, work: StepWork) -> float:
        n_prefill, pairs, rows, context, _ = work
        fixed = self.decode_s
        if n_prefill:
            prefill_s = max(self.token_s * n_prefill + self.pair_s * pairs, self.long_token_s * n_prefill)
            far = pairs - _LONGEST_MEASURED * n_prefill
            if far > 0:
                prefill_s += self.far_pair_s * far
            fixed = max(fixed, self.prefill_s + prefill_s)
        fitted = fixed + self.row_s * rows + self.context_s * context
        return max(fitted, self.read_s + self.kv_read_s * context, self.flops_s * (n_prefill + rows))

    def decode_ends_s(self, rows: int, context: int, repeat: int, start_s: float) -> tuple[float, ...]:
        """When each iteration of a repeated decode step ends: a token per row is added to the context each
        time."""
        fixed_s, context_s = self.decode_s + self.row_s * rows, self.context_s
        read_s, kv_read_s, flops_s = self.read_s, self.kv_read_s, self.flops_s * rows
        at_s, ends_s = start_s, []
        for _ in range(repeat):
            fitted_s, floor_s = fixed_s + context_s * context, read_s + kv_read_s * context
            fitted_s = max(fitted_s, floor_s)
            at_s += max(fitted_s, flops_s)
            ends_s.append(at_s)
            context += rows
        return tuple(ends_s)
