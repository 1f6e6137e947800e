"""What libraries raise becomes an error of ours; what is not theirs passes."""

import pytest

from tokenmux.core.errors import BadCheckpoint, NotFound
from tokenmux.models.foreign_errors import foreign_errors_as


class PanicException(BaseException):
    """As a panic of Rust arrives in Python."""


def refused(error: BaseException) -> BadCheckpoint:
    return BadCheckpoint(f"the file cannot be read ({error})")


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("odd"), PanicException("odd")])
def test_what_a_library_raises_is_a_refusal(error: BaseException) -> None:
    with pytest.raises(BadCheckpoint, match=r"cannot be read \('?odd'?\)"), foreign_errors_as(refused):
        raise error


@pytest.mark.parametrize("error", [NotFound("ours"), MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_not_the_librarys_fault_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), foreign_errors_as(refused):
        raise error
