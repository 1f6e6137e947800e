"""A very short form of the benchmark: two families through a few cycles, every token as the model gave it
alone."""

from pathlib import Path

import pytest

from benchmarks.swap_exactness import measure
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue


@pytest.mark.parametrize(("family", "dtype"), [("qwen2", "bfloat16"), ("gpt2", "float32")])
def test_swaps_change_no_token(tmp_path: Path, family: str, dtype: str) -> None:
    catalogue = Catalogue(tmp_path / "catalogue")
    neighbour = catalogue.register_folder("beside", tiny.create("llama", tmp_path / "llama"))
    source = tiny.create(family, tmp_path / family, seed=1)
    entry = catalogue.register_folder("swapped", source, dtype=dtype)
    result = measure(entry, [neighbour], n_cycles=8)
    assert result.n_swaps >= 8
    assert result.n_offsets > 1, "the weights always came back to the same place"
    assert result.n_tokens > 0
    assert result.n_changed_tokens == 0
