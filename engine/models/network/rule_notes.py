"""Row rules that were found on this machine, noted in the model's folder of the catalogue.

Finding one compares the bits of hundreds of products: 1.7 s for SmolLM2-135M, most of it for the head. Each
process of a server needs it, and each that replaces one. A note holds only for what products are computed by:
the processor, torch's build, the number of threads, and the variables that oneDNN and OpenMP read.
"""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from tokenmux.core.errors import TokenmuxError
from tokenmux.models.atomic_files import atomic_file
from tokenmux.models.network import rows
from tokenmux.models.network.rows import Product, RowRule

FILE = "row_rules.json"

MOST_NOTES = 32
"""How many a file keeps, the last ones: machines that share a catalogue have notes of their own."""

_READ_BY_LIBRARIES = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "TORCH_")


def noted_row_rule(folder: Path, dtype: torch.dtype, products: frozenset[Product]) -> RowRule:
    """The rule for these products, out of the notes in `folder`; or found, and noted there if that is
    possible. Raises UnsupportedModel as `row_rule` does."""
    key = _key(dtype, products, torch.get_num_threads())
    notes = _read(folder)
    rule = notes.get(key)
    if rule is not None:
        rows.know_rule(dtype, products, rule)
        return rule
    notes[key] = rule = rows.row_rule(dtype, products)
    with suppress(TokenmuxError):  # a catalogue that cannot be written
        _write(folder, notes)
    return rule


def _read(folder: Path) -> dict[str, RowRule]:
    """The notes of a folder, in the order in which they were made. What is not a rule that could have been
    found counts as nothing."""
    try:
        said = json.loads((folder / FILE).read_bytes())
        notes = {str(key): RowRule(*numbers) for key, numbers in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    possible = frozenset(rows.candidates())
    return {key: rule for key, rule in notes.items() if rule in possible}


def _write(folder: Path, notes: dict[str, RowRule]) -> None:
    kept = list(notes.items())[-MOST_NOTES:]
    document = {key: [rule.minimum, rule.multiple, rule.most] for key, rule in kept}
    with atomic_file(folder / FILE) as out:
        out.write(json.dumps(document, indent=1).encode())


def _key(dtype: torch.dtype, products: frozenset[Product], n_threads: int) -> str:
    what = (_machine(), str(dtype), sorted(map(str, products)), n_threads)
    return hashlib.sha256(repr(what).encode()).hexdigest()


@cache
def _machine() -> tuple[object, ...]:
    """Everything besides a product itself that its kernel may be chosen by."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith(_READ_BY_LIBRARIES))
    return (torch.__version__, torch.__config__.show(), _processor(), variables)


def _processor() -> list[str]:
    """Model and features of the first core, and their caches, as Linux tells them."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in (
                "vendor_id",
                "cpu family",
                "model",
                "model name",
                "stepping",
                "flags",
                "Features",
            ):
                found.append(value.strip())
    for cache_size in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):
        with suppress(OSError):
            found.append(cache_size.read_text().strip())
    return found
