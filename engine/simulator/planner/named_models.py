"""The models of a plan as operators name them: architectures, config.json files, what a running pool serves.

qwen2.5-7b              an architecture by name (engine/simulator/architectures.py)
bank=qwen2.5-7b         the same under a name of its own, as in a trace
40*qwen2.5-7b           forty of them, qwen2.5-7b-0 to qwen2.5-7b-39
./my-model              a folder with a config.json, or the file itself: sizes are derived from it
...@0.5                 any of these at 0.5 requests per second each
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import Image, ImageId, ModelFacts, ModelId
from tokenmux.simulator.architectures import architecture, measured_as
from tokenmux.simulator.planner.config_facts import facts_of_config
from tokenmux.simulator.scenario import Market


@dataclass(frozen=True, slots=True)
class Asked:
    """A market, and the requested rates (requests per second) of the models that have one."""

    market: Market
    rates: dict[str, float]


MAX_MODELS = 100_000
"""The largest number of models of one kind in a plan."""


def parse_models(entries: Sequence[str], known: Mapping[ModelId, ModelFacts] | None = None) -> Asked:
    """Read models as operators write them.

    `known` are models whose facts come from elsewhere (a running server); an entry of the same name takes
    precedence. Raises ConfigError or NotFound for what cannot be read.
    """
    facts = dict(known or {})
    kinds = dict.fromkeys(facts, "")
    rates: dict[str, float] = {}
    for entry in entries:
        described, rate_rps = _rate(entry)
        for model, (own, kind) in _named(described).items():
            facts[own.id], kinds[own.id] = own, kind
            if rate_rps is not None:
                rates[model] = rate_rps
    if not facts:
        raise ConfigError(
            "name at least one model to plan for, such as qwen2.5-7b or a folder with a config.json"
        )
    return Asked(Market(facts, kinds), rates)


def parse_market(entries: Sequence[str], known: Mapping[ModelId, ModelFacts]) -> Market:
    """Read models without rates."""
    return parse_models(entries, known).market


def _rate(entry: str) -> tuple[str, float | None]:
    described, at, text = entry.rpartition("@")
    try:
        rate_rps = float(text) if at else None
    except ValueError:
        return entry, None
    if rate_rps is None:
        return entry, None
    if not (isfinite(rate_rps) and rate_rps >= 0):
        raise ConfigError(f"{entry}: the rate after @ must be requests per second, 0 or more")
    return described, rate_rps


def _named(entry: str) -> dict[str, tuple[ModelFacts, str]]:
    """Facts by name, each with the architecture whose measured step times it has (empty: derived)."""
    count, star, rest = entry.partition("*")
    if star and count.isdecimal():
        if len(count) > len(str(MAX_MODELS)) or not 1 <= int(count) <= MAX_MODELS:
            raise ConfigError(
                f"{entry[:80]}: the number of models must be at least 1 and at most {MAX_MODELS}"
            )
        own, kind = _facts(rest)
        return {f"{own.id}-{n}": (renamed_facts(own, f"{own.id}-{n}"), kind) for n in range(int(count))}
    name, equals, described = entry.partition("=")
    own, kind = _facts(described if equals else entry)
    return {name: (renamed_facts(own, name), kind)} if equals else {own.id: (own, kind)}


def _facts(described: str) -> tuple[ModelFacts, str]:
    try:
        path = Path(described).expanduser()
        path.exists()
    except (RuntimeError, ValueError) as error:  # an unknown home directory, a NUL
        raise ConfigError(f"{described!r} is not a path that can be used: {error}") from error
    if path.suffix == ".json" or path.exists() or "/" in described:
        return _from_config(path), ""
    made = architecture(described)
    return made.facts(described), measured_as(made.name)


def _from_config(path: Path) -> ModelFacts:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}; give the config.json of a model, or a folder "
            "that has one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not JSON that can be read: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: is not the config of a model, but {type(config).__name__}")
    try:
        return facts_of_config(
            path.absolute().parent.name if path.is_file() else path.absolute().name, config
        )
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def renamed_facts(facts: ModelFacts, name: str) -> ModelFacts:
    """The same sizes under another name, with weights of its own."""
    images = tuple(Image(ImageId(f"{name}/weights"), image.n_bytes) for image in facts.images)
    return replace(facts, id=ModelId(name), images=images)
