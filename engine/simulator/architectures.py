"""Facts of well-known model architectures, so that a pool can be planned by name. A config.json gives the
same facts for any other architecture.

Sizes are those of 16-bit weights. `n_kv_heads` is what the architecture really has; the Aegaeon artifact
counts KV as if every head had its own, and `as_artifact` does the same for comparisons with it.
"""

from dataclasses import dataclass, replace

from tokenmux.core.errors import NotFound
from tokenmux.core.facts import BLOCK_TOKENS, Image, ImageId, KvShape, ModelFacts, ModelId


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture, from its config.json: billions of parameters, layers, attention and KV heads, head
    size, longest context."""

    name: str
    parameters_b: float
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_context: int
    weight_bytes: int | None = None
    """None means two bytes per parameter."""
    active_b: float | None = None
    """For a mixture of experts: billions of parameters that one token uses."""

    def facts(self, model: str) -> ModelFacts:
        """A model of this architecture called `model`, with weights of its own."""
        n_bytes = self.weight_bytes or int(2e9 * self.parameters_b)
        return ModelFacts(
            ModelId(model),
            (Image(ImageId(f"{model}/weights"), n_bytes),),
            KvShape(self.n_layers, self.n_kv_heads, self.head_dim, 2, BLOCK_TOKENS),
            self.max_context,
            int(1e9 * (self.active_b or self.parameters_b)),
        )

    def as_artifact(self, gigabytes: int, max_context: int) -> "Architecture":
        """The same with weights, context and KV as the Aegaeon artifact counts them."""
        return replace(self, weight_bytes=gigabytes * 10**9, n_kv_heads=self.n_heads, max_context=max_context)


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("smollm2-135m", 0.135, 30, 9, 3, 64, 8192),
        Architecture("qwen2.5-0.5b", 0.49, 24, 14, 2, 64, 32768),
        Architecture("qwen2.5-1.5b", 1.54, 28, 12, 2, 128, 32768),
        Architecture("llama3.2-3b", 3.21, 28, 24, 8, 128, 131072),
        Architecture("yi-1.5-6b", 6.06, 32, 32, 4, 128, 4096),
        Architecture("llama2-7b", 6.74, 32, 32, 32, 128, 4096),
        Architecture("mistral-7b", 7.25, 32, 32, 8, 128, 32768),
        Architecture("qwen2.5-7b", 7.62, 28, 28, 4, 128, 32768),
        Architecture("llama3.1-8b", 8.03, 32, 32, 8, 128, 131072),
        Architecture("yi-1.5-9b", 8.83, 48, 32, 4, 128, 4096),
        Architecture("llama2-13b", 13.02, 40, 40, 40, 128, 4096),
        Architecture("qwen1.5-14b", 14.17, 40, 40, 40, 128, 32768),
        Architecture("qwen2.5-14b", 14.77, 48, 40, 8, 128, 32768),
        Architecture("qwen3-30b-a3b", 30.5, 48, 32, 4, 128, 40960, active_b=3.3),
        Architecture("qwen2.5-32b", 32.76, 64, 40, 8, 128, 32768),
        Architecture("mixtral-8x7b", 46.7, 32, 32, 8, 128, 32768, active_b=12.9),
        Architecture("llama2-70b", 68.98, 80, 64, 8, 128, 4096),
        Architecture("llama3.1-70b", 70.55, 80, 64, 8, 128, 131072),
        Architecture("qwen2.5-72b", 72.71, 80, 64, 8, 128, 32768),
    )
}

_SAME_SHAPE = {"llama3.1-70b": "llama2-70b", "qwen2.5-72b": "llama2-70b"}
"""Architectures measured under another name: the same layers, widths and KV heads up to 6%."""


def architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise NotFound(
            f"no architecture {name}; there are {', '.join(ARCHITECTURES)}, or give its config.json"
        )
    return ARCHITECTURES[name]


def measured_as(name: str) -> str:
    """The architecture under which this one's step times are filed."""
    return _SAME_SHAPE.get(name, name)


_PAPER = (
    (ARCHITECTURES["qwen2.5-7b"].as_artifact(14, 8192), 6),
    (ARCHITECTURES["yi-1.5-9b"].as_artifact(18, 4096), 2),
    (ARCHITECTURES["llama2-13b"].as_artifact(26, 4096), 2),
)


def paper_architecture(index: int) -> Architecture:
    """The architecture of model `index` in the paper's market: of every ten models, six are Qwen2.5-7B, two
    Yi-1.5-9B and two Llama2-13B."""
    place = index % 10
    for kind, count in _PAPER:
        if place < count:
            return kind
        place -= count
    raise AssertionError("the counts add up to ten")
