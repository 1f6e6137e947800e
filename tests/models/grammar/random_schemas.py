"""Random JSON schemas of the kinds that people write."""

from random import Random
from typing import Any


def random_schema(rng: Random, depth: int = 3) -> dict[str, Any]:
    """A schema that some short document meets."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "pattern", "nullable"]
    if depth:
        kinds += ["object", "object", "object", "array", "array", "anyOf", "reference"]
    match rng.choice(kinds):
        case "string":
            least = rng.randrange(3)
            return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(6)}
        case "integer":
            low = rng.randrange(-100, 100)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1000)}
        case "number":
            return {"type": "number", "minimum": rng.choice((0, -1.5)), "exclusiveMaximum": 10}
        case "boolean":
            return {"type": "boolean"}
        case "null":
            return {"type": "null"}
        case "enum":
            return {"enum": rng.sample(["a", 'b"\\', "ç", 1, 2.5, None, True, [1], {"k": "v"}], 3)}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(("^[a-c]{1,3}$", r"^\d\d-\d$", "^(x|yz)+$"))}
        case "nullable":
            return {"type": ["string", "null"], "maxLength": 4}
        case "object":
            names = rng.sample(["id", "name", "größe", "a b", "x"], rng.randrange(1, 5))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": [name for name in names if rng.random() < 0.7],
                "additionalProperties": False,
            }
        case "array":
            least = rng.randrange(3)
            return {
                "type": "array",
                "items": random_schema(rng, depth - 1),
                "minItems": least,
                "maxItems": least + rng.randrange(3),
            }
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
        case _:
            inner = random_schema(rng, 0)
            return {"type": "array", "items": {"anyOf": [inner, {"type": "null"}]}, "maxItems": 3}
