"""End tokens come out as ids that the model can draw, whatever a checkpoint says."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.text.end_tokens import end_tokens, valid_ids

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.integers(0, 400).map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(JSON, st.integers(1, 400))
def test_only_ids_of_the_vocabulary_come_out(said: object, vocab_size: int) -> None:
    found = valid_ids(said, vocab_size, "x.json")
    assert all(type(token) is int and 0 <= token < vocab_size for token in found.ids)
    assert all(warning.startswith("x.json: ") and len(warning) < 200 for warning in found.warnings)
    if isinstance(said, int) and not isinstance(said, bool):
        assert found.ids == ({said} if 0 <= said < vocab_size else set())
        assert bool(found.warnings) == (not found.ids)


@pytest.mark.parametrize(
    ("said", "ids", "warned"),
    [
        (None, set(), 0),
        (5, {5}, 0),
        ([5, 6], {5, 6}, 0),
        ([257, 9999], {257}, 1),
        (-1, set(), 1),
        (320, set(), 1),
        (319, {319}, 0),
        ("257", {257}, 1),
        ("<|end|>", set(), 1),
        ([[5], [[6]]], {5, 6}, 0),
        (True, set(), 1),
        ([False, 7], {7}, 1),
        (5.0, {5}, 1),
        (5.5, set(), 1),
        (float("nan"), set(), 1),
        ({"a": 1}, set(), 1),
        (10**30, set(), 1),
        (list(range(320)), set(range(256)), 1),
    ],
)
def test_odd_ends(said: object, ids: set[int], warned: int) -> None:
    found = valid_ids(said, 320, "config.json")
    assert (found.ids, len(found.warnings)) == (ids, warned)


def test_the_generation_config_comes_before_the_config_if_it_names_a_valid_token(tmp_path: Path) -> None:
    def ends(generation: object, config: object, tokenizer: object = None) -> set[int]:
        for name, said in (("generation_config.json", generation), ("config.json", config)):
            (tmp_path / name).write_text(json.dumps(said))
        return set(end_tokens(tmp_path, tokenizer, 320).ids)

    assert ends({"eos_token_id": 5}, {"eos_token_id": 6}, 7) == {5, 7}
    assert ends({"eos_token_id": [9999]}, {"eos_token_id": 6}) == {6}
    assert ends({}, {"text_config": {"eos_token_id": [8]}}, 320) == {8}
    assert ends({"eos_token_id": None}, {"text_config": None}) == set()
    (tmp_path / "generation_config.json").unlink()
    assert set(end_tokens(tmp_path, None, 320).ids) == set()
    for damaged in ("[", "[1]", "3", "[" * 100_000):
        (tmp_path / "generation_config.json").write_text(damaged)
        with pytest.raises(BadCheckpoint, match=r"generation_config\.json: damaged"):
            end_tokens(tmp_path, None, 320)
