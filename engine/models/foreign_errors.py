"""What libraries and checkpoints' own code raise, turned into errors of ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenmux.core.errors import TokenmuxError


def is_foreign(error: BaseException) -> bool:
    """True if a library failed: with an Exception, or with a panic of Rust, which is not an Exception. An
    interrupt does not count."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def foreign_errors_as(refusal: Callable[[BaseException], TokenmuxError]) -> Iterator[None]:
    """Raise `refusal(error)` for any error that a library raises in the block.

    Errors of ours pass, and so does MemoryError: it says nothing about the file or the prompt, and who limits
    the memory reports it.
    """
    try:
        yield
    except (TokenmuxError, MemoryError):
        raise
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise refusal(error) from error


def first_line(error: BaseException) -> str:
    """The message of a foreign exception: its first line with content, with the line that follows a colon;
    otherwise its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    n = 2 if lines[0].endswith(":") else 1
    return " ".join(lines[:n])[:500]
