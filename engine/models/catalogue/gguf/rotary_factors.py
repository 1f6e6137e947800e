"""Rotary scaling: from the keys `rope.*` and the tensors of factors to transformers' `rope_parameters`.

GGUF has three ways to express it: keys (`rope.scaling.type` linear or yarn, `.factor`, ...), a tensor
`rope_freqs.weight` (each frequency is divided by its factor: Llama 3), and two tensors
`rope_factors_short.weight`, `rope_factors_long.weight` (Phi-3).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.catalogue.gguf.keys import Keys

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_CLOSE = 1e-5
"""Relative tolerance. Factors are stored in float32; the smoothing of Llama 3 amplifies their rounding a
little."""


def rope_parameters(
    keys: Keys,
    factors: Mapping[str, Sequence[float]],
    *,
    base: float,
    rotated: int,
    context: int,
    truncate: bool | None = None,
) -> dict[str, Any]:
    """The parameters of `rotated` dimensions with base `base`, for a model of `context` positions.

    `factors` are the file's tensors of factors. `truncate` is yarn's, for architectures that choose it
    themselves. Raises BadCheckpoint or UnsupportedModel.
    """
    for name, values in factors.items():
        if len(values) != rotated // 2 or not all(math.isfinite(v) and v > 0 for v in values):
            raise BadCheckpoint(f"{keys.file}: {name} does not hold {rotated // 2} factors above 0")
    keys.ignore("rope.scaling.finetuned")
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    kind = _kind(keys)
    if kind != "none" and FREQUENCIES in factors:
        keys.unsupported("rope.scaling.type", f"is {kind} beside {FREQUENCIES}")
    if SHORT in factors or LONG in factors:
        return plain | _long(keys, factors, kind, context)
    if kind == "longrope":
        raise BadCheckpoint(f"{keys.file}: rope.scaling.type is longrope, and {SHORT} is missing")
    if kind == "yarn":
        return plain | _yarn(keys, truncate)
    keys.expect("rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        return plain | {"rope_type": "linear", "factor": _factor(keys)}
    if FREQUENCIES in factors:
        keys.ignore("rope.scaling.original_context_length")
        return plain | _frequencies(factors[FREQUENCIES], base, rotated, context)
    return plain


def _kind(keys: Keys) -> str:
    """The kind of scaling. Without a type, a factor means linear scaling, as in llama.cpp."""
    if "rope.scaling.type" in keys:
        kind = keys.text("rope.scaling.type")
        if kind not in ("none", "linear", "yarn", "longrope"):
            keys.unsupported("rope.scaling.type", f"is {kind[:40]!r}")
        if kind == "none":
            keys.ignore("rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length")
        return kind
    if any(name in keys for name in ("rope.scaling.factor", "rope.scale_linear")):
        if "rope.scaling.original_context_length" in keys:
            keys.bad("rope.scaling.type", "is missing")
        return "linear" if _factor(keys) != 1.0 else "none"
    return "none"


def _factor(keys: Keys) -> float:
    name = "rope.scaling.factor"
    if name not in keys and "rope.scale_linear" in keys:
        name = "rope.scale_linear"  # its name in files of 2023
    return 1.0 if keys.raw(name) == 0.0 else keys.number(name)


def _yarn(keys: Keys, truncate: bool | None) -> dict[str, Any]:
    # The attention factor that the converter writes is not the one that llama.cpp computes from it; no known
    # model has one.
    for name in ("yarn_ext_factor", "attn_factor"):
        keys.expect(f"rope.scaling.{name}", 1.0)
    for name in ("yarn_attn_factor", "yarn_log_multiplier"):
        keys.expect(f"rope.scaling.{name}")
    made: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": _factor(keys),
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    return made if truncate is None else made | {"truncate": truncate}


def _long(keys: Keys, factors: Mapping[str, Sequence[float]], kind: str, context: int) -> dict[str, Any]:
    if kind not in ("none", "longrope"):
        keys.unsupported("rope.scaling.type", f"is {kind} beside {SHORT}")
    if missing := sorted({SHORT, LONG} - factors.keys()):
        raise BadCheckpoint(f"{keys.file}: {missing[0]} is missing")
    original = keys.integer("rope.scaling.original_context_length")
    made: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": list(factors[SHORT]),
        "long_factor": list(factors[LONG]),
        "original_max_position_embeddings": original,
    }
    keys.ignore(
        "rope.scaling.factor"
    )  # of no meaning to longrope in llama.cpp; transformers takes the ratio of contexts
    usual = (
        math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original > 1 else 1.0
    )
    attention = keys.number("rope.scaling.attn_factor", usual)
    # It is stored in float32: if it is the usual value, transformers computes it more precisely.
    return made if math.isclose(attention, usual, rel_tol=1e-6) else made | {"attention_factor": attention}


def _frequencies(factors: Sequence[float], base: float, rotated: int, context: int) -> dict[str, Any]:
    """The Llama 3 parameters that give these factors, or the factors themselves if there are no such
    parameters."""
    if all(factor == 1.0 for factor in factors):
        return {}
    wavelengths = [2 * math.pi * base ** (2 * i / rotated) for i in range(rotated // 2)]
    for factor, high, original in _candidates(factors, wavelengths):
        expected = (_llama3(wave, factor, high, original) for wave in wavelengths)
        if all(math.isclose(a, b, rel_tol=_CLOSE) for a, b in zip(factors, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    # With the original context equal to the whole context, longrope always divides by its short factors.
    return {
        "rope_type": "longrope",
        "short_factor": list(factors),
        "long_factor": list(factors),
        "original_max_position_embeddings": context,
        "attention_factor": 1.0,
    }


def _candidates(factors: Sequence[float], wavelengths: Sequence[float]) -> list[tuple[float, float, int]]:
    """(factor, high_freq_factor, original context) to try, with low_freq_factor 1: only ratios matter.

    Between the two bounds 1/f is linear in 1/wavelength, so two factors there determine the line, and the
    line determines the parameters.
    """
    factor = _rounded(max(factors))
    found = [(factor, 4.0, original) for original in (8192, 4096, 2048, 16384, 32768)]
    between = [
        (1 / wave, (1 / f - 1 / factor) / (1 - 1 / factor))
        for f, wave in zip(factors, wavelengths, strict=True)
        if 1.0 < f < factor * (1 - _CLOSE)
    ]
    if len(between) > 1:
        (x1, y1), (x2, y2) = between[0], between[-1]
        slope = (y2 - y1) / (x2 - x1)
        offset = y1 - slope * x1
        if offset < 0:
            high = 1 - 1 / offset
            found.append((factor, _rounded(high), round(slope * (high - 1))))
    elif between:
        # One factor only: take the original context for the usual bounds.
        x, y = between[0]
        found.append((factor, 4.0, round((1 + 3 * y) / x)))
    return found


def _llama3(wavelength: float, factor: float, high: float, original: int) -> float:
    if wavelength < original / high:
        return 1.0
    if wavelength > original:
        return factor
    smooth = (original / wavelength - 1) / (high - 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _rounded(value: float) -> float:
    """The value without traces of float32 rounding, if it is a number of few digits."""
    short = round(value, 3)
    return short if math.isclose(short, value, rel_tol=1e-4) else value
