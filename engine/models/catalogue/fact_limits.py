"""Which numbers a model may have, both from a checkpoint and from the file of a catalogue entry."""

from tokenmux.core.errors import UnsupportedModel
from tokenmux.core.facts import ModelFacts


def check_facts(facts: ModelFacts) -> ModelFacts:
    """Return the facts if every number is possible. Raises UnsupportedModel."""
    numbers = {
        "layers": (facts.kv.n_layers, 1, 1 << 14),
        "key-value heads": (facts.kv.n_kv_heads, 1, 1 << 14),
        "head size": (facts.kv.head_dim, 1, 1 << 16),
        "context (max_position_embeddings)": (facts.max_context, 1, (1 << 31) - 1),
        "vocabulary": (facts.vocab_size, 1, (1 << 31) - 1),
        "parameters": (facts.n_parameters, 1, 1 << 50),
        "bytes of weights": (facts.n_bytes, 1, 1 << 50),
    }
    for what, (number, least, most) in numbers.items():
        if not isinstance(number, int) or not least <= number <= most:
            raise UnsupportedModel(f"{facts.id}: {what} of {number!r}: a model has {least} to {most}")
    return facts
