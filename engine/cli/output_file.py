"""Files that a command writes because an option names them."""

from pathlib import Path

from tokenmux.core.errors import ConfigError


def write_output(path: Path, content: str) -> None:
    """Write `content` to `path`. Raises ConfigError if it cannot be written."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
