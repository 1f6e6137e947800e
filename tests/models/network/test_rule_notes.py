"""Notes of row rules: found once, believed only by those who would find the same."""

import json
from pathlib import Path

import pytest
import torch

from tokenmux.models.network import rows, rule_notes
from tokenmux.models.network.rows import Product, RowRule
from tokenmux.models.network.rule_notes import FILE, MOST_NOTES, noted_row_rule

PRODUCTS = frozenset({Product(24, 40), Product(40, 24)})
OTHERS = frozenset({Product(24, 40)})


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[Product]]:
    """The products for which a rule was looked for, which is made up."""
    looked_for: list[frozenset[Product]] = []

    def row_rule(dtype: torch.dtype, products: frozenset[Product]) -> RowRule:
        looked_for.append(products)
        return RowRule(4, 4)

    monkeypatch.setattr(rows, "row_rule", row_rule)
    monkeypatch.setattr(rows, "_known", {})
    monkeypatch.setattr(rule_notes, "_machine", lambda: ("this machine",))
    return looked_for


def look(
    folder: Path, dtype: torch.dtype = torch.bfloat16, products: frozenset[Product] = PRODUCTS
) -> RowRule:
    return noted_row_rule(folder, dtype, products)


def test_a_rule_is_found_once(tmp_path: Path, found: list[frozenset[Product]]) -> None:
    assert look(tmp_path) == look(tmp_path) == RowRule(4, 4)
    assert found == [PRODUCTS]
    assert rows._known == {(torch.bfloat16, PRODUCTS, torch.get_num_threads()): RowRule(4, 4)}


def test_a_note_holds_for_the_same_only(
    tmp_path: Path, found: list[frozenset[Product]], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(tmp_path)
    look(tmp_path, torch.float32)
    look(tmp_path, products=OTHERS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    look(tmp_path)
    monkeypatch.setattr(rule_notes, "_machine", lambda: ("another machine",))
    look(tmp_path)
    assert len(found) == 5
    look(tmp_path)
    assert len(found) == 5


@pytest.mark.parametrize(
    "content",
    ["", "[]", "7", '{"KEY": 7}', '{"KEY": [1, 1, null]}', '{"KEY": [4, 4, 4, 4]}', '{"KEY": ["a"]}'],
)
def test_what_is_no_rule_is_not_believed(
    tmp_path: Path, found: list[frozenset[Product]], content: str
) -> None:
    look(tmp_path)
    (key,) = json.loads((tmp_path / FILE).read_bytes())
    (tmp_path / FILE).write_text(content.replace("KEY", key))
    assert look(tmp_path) == RowRule(4, 4)
    assert len(found) == 2


def test_a_folder_that_cannot_be_written_has_no_notes(
    tmp_path: Path, found: list[frozenset[Product]]
) -> None:
    assert look(tmp_path / "missing") == look(tmp_path / "missing") == RowRule(4, 4)
    assert len(found) == 2


def test_the_last_notes_are_kept(tmp_path: Path, found: list[frozenset[Product]]) -> None:
    many = [frozenset({Product(1, k)}) for k in range(MOST_NOTES + 3)]
    for products in many:
        look(tmp_path, products=products)
    assert len(json.loads((tmp_path / FILE).read_bytes())) == MOST_NOTES
    look(tmp_path, products=many[-1])
    look(tmp_path, products=many[0])
    assert found == [*many, many[0]]


def test_the_machine_is_known_by_what_products_are_computed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rule_notes._machine.cache_clear()
    before = rule_notes._machine()
    assert str(torch.__version__) in map(str, before)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    rule_notes._machine.cache_clear()
    assert rule_notes._machine() != before
    rule_notes._machine.cache_clear()


def test_a_noted_rule_is_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(rows, "_known", {})
    rule = noted_row_rule(tmp_path, torch.float32, PRODUCTS)
    assert rows.row_rule(torch.float32, PRODUCTS) == rule
    assert noted_row_rule(tmp_path, torch.float32, PRODUCTS) == rule
