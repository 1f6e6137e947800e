"""A checkpoint's own tokenizer as transformers reads it: registration makes a catalogue entry's text files
from it."""

import logging
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.json_files import LFS_POINTER, lfs_pointer, read_object
from tokenmux.models.text.end_tokens import end_tokens
from tokenmux.models.transformers_log import quiet_transformers

logger = logging.getLogger(__name__)


_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "tokenizer.json",
)
"""What a tokenizer is read from, if it is there. Each holds an object."""
_OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.txt", "merges.txt", "tekken.json")


@dataclass(frozen=True, slots=True)
class CheckpointTokenizer:
    """The tokenizer, and the tokens that end an output according to it and to the model's generation
    config."""

    backend: PreTrainedTokenizerBase
    stop_token_ids: frozenset[int]

    @classmethod
    def load(cls, folder: Path, vocab_size: int, *, trust_remote_code: bool = False) -> "CheckpointTokenizer":
        """Read the tokenizer in `folder`. Raises BadCheckpoint if there is none, it is damaged, or it is a
        slow one.

        End tokens beyond `vocab_size` are left out with a warning.
        """

        def refusal(error: BaseException) -> BadCheckpoint:
            if (fault := _damaged_file(folder)) is not None:
                return fault
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            return BadCheckpoint(f"{folder}: the tokenizer cannot be read ({reason})")

        with foreign_errors_as(refusal), quiet_transformers():
            backend = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        if not backend.is_fast:
            raise BadCheckpoint(f"{folder}: the tokenizer has no fast version (tokenizer.json)")
        ends = end_tokens(folder, backend.eos_token_id, vocab_size)
        for warning in ends.warnings:
            logger.warning("%s: %s", folder.name, warning)
        return cls(backend, frozenset(ends.ids))


def _damaged_file(folder: Path) -> BadCheckpoint | None:
    """The fault of the first file that is not what it should be. transformers names neither file nor
    fault."""
    for path in (folder / name for name in (*_FILES, *_OTHER_FILES)):
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    return lfs_pointer(path)
            if path.name in _FILES:
                read_object(path)
        except OSError as error:
            return BadCheckpoint(f"{path}: cannot be read ({error.strerror})")
        except BadCheckpoint as fault:
            return fault
    return None
