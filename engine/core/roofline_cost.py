"""The cost model of a running engine: a roofline that corrects itself from measurements.

No profiling run is needed: the first estimate comes from model and device facts, and every completed step or
copy refines it. The formulas follow the roofline model (Williams et al., CACM 2009): a step takes as long as
the slower of its arithmetic and its memory traffic, plus a fixed overhead.
"""

from tokenmux.core.cost import StepWork
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts, ModelId
from tokenmux.core.plan import Channel

_LEARNING_RATE = 0.2
"""Weight of the newest measurement. After 10 steps 90% of the first error is gone, and one outlier moves the
estimate by at most a fifth."""

_TRUSTED_RATIO = (0.2, 20.0)
"""Bounds of measured over estimated time. A measurement outside is clipped, so that a single page fault does
not spoil the estimate."""

_INTERFERENCE = (1.0, 5.0)
"""Bounds of the slowdown beside a copy. A copy never makes a step faster: a ratio outside these bounds
measured something else."""


class RooflineCost:
    """A roofline estimate times a learned correction.

    It learns a ratio per model and kind of work (prefill or not) from steps that had the memory to
    themselves. Models that have not stepped use the ratio of the others. One more ratio, for the device, says
    how much longer steps take beside a copy.
    """

    def __init__(self, device: DeviceFacts, host: HostFacts) -> None:
        self._device = device
        self._bytes_per_s = {
            Channel.COPY_IN: device.copy_in_bytes_per_s,
            Channel.COPY_OUT: device.copy_out_bytes_per_s,
            Channel.FETCH: host.fetch_bytes_per_s,
        }
        self._overhead_s = {
            Channel.COPY_IN: device.copy_overhead_s,
            Channel.COPY_OUT: device.copy_overhead_s,
            Channel.FETCH: host.fetch_overhead_s,
        }
        self._step_ratio: dict[tuple[ModelId, bool], float] = {}
        self._usual_ratio: dict[bool, float] = {}
        self._copy_ratio: dict[Channel, float] = {}
        self.interference = 1.0
        """Duration of a step beside a copy, relative to the same step alone, as measured so far."""

    def step_s(self, model: ModelFacts, work: StepWork) -> float:
        is_prefill = work.prefill_tokens > 0
        ratio = self._step_ratio.get((model.id, is_prefill)) or self._usual_ratio.get(is_prefill, 1.0)
        if work.beside_copy:
            ratio *= self.interference
        return ratio * self._roofline_step_s(model, work)

    def copy_s(self, channel: Channel, n_bytes: int) -> float:
        seconds = self._overhead_s[channel] + n_bytes / self._bytes_per_s[channel]
        return seconds * self._copy_ratio.get(channel, 1.0)

    def move_s(self, n_bytes: int) -> float:
        return self._device.copy_overhead_s + 2 * n_bytes / self._device.memory_bytes_per_s

    def observe_step(self, model: ModelFacts, work: StepWork, seconds: float) -> None:
        is_prefill = work.prefill_tokens > 0
        key = (model.id, is_prefill)
        measured = _bounded(seconds / self._roofline_step_s(model, work), _TRUSTED_RATIO)
        known = self._step_ratio.get(key)
        usual = self._usual_ratio.get(is_prefill, measured)
        self._usual_ratio[is_prefill] = usual + _LEARNING_RATE * (measured - usual)
        if known is None:
            self._step_ratio[key] = measured
        elif work.beside_copy:
            beside = _bounded(measured / known, _INTERFERENCE)
            self.interference += _LEARNING_RATE * (beside - self.interference)
        else:
            self._step_ratio[key] = known + _LEARNING_RATE * (measured - known)

    def observe_copy(self, channel: Channel, n_bytes: int, seconds: float) -> None:
        estimate = self._overhead_s[channel] + n_bytes / self._bytes_per_s[channel]
        measured = _bounded(seconds / estimate, _TRUSTED_RATIO)
        known = self._copy_ratio.get(channel, 1.0)
        self._copy_ratio[channel] = known + _LEARNING_RATE * (measured - known)

    def _roofline_step_s(self, model: ModelFacts, work: StepWork) -> float:
        device = self._device
        rows = work.prefill_tokens + work.decode_rows
        kv = model.kv
        attended = work.prefill_pairs + work.context_tokens
        flops = 2.0 * model.n_parameters * rows + 4.0 * kv.n_layers * kv.n_kv_heads * kv.head_dim * attended
        traffic = model.n_bytes + kv.token_bytes * (work.context_tokens + rows)
        return device.step_overhead_s + max(flops / device.flops_per_s, traffic / device.memory_bytes_per_s)


def _bounded(ratio: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return min(max(ratio, low), high)
