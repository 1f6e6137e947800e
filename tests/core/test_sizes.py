"""Sizes: as people write them, as they are shown, and rounded up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.sizes import parse_size, round_up, show_size


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2GiB", 2 << 30), ("1.5 gib", 3 << 29), ("10MB", 10**7), (512, 512), ("7 B", 7)]
)
def test_a_size_is_a_number_of_bytes(text: object, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2 apples", "1e9", 1.5, "0.5 B", True, None])
def test_what_is_not_a_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_size_is_shown_in_its_largest_unit() -> None:
    assert [show_size(n) for n in (0, 2048, 270_000_000, 3 << 29)] == [
        "0 bytes",
        "2.0 KiB",
        "257.5 MiB",
        "1.5 GiB",
    ]


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 20))
def test_rounding_up_reaches_the_next_multiple_and_no_further(n: int, multiple: int) -> None:
    rounded = round_up(n, multiple)
    assert rounded % multiple == 0
    assert 0 <= rounded - n < multiple
