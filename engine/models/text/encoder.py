"""A catalogue entry's text without transformers: what encodes prompts, what decodes output, and facts about
both.

    text.json       stop tokens, chat template, special tokens of the template, the longest token
    encoder.json    the tokenizer, as transformers made it at registration
    decoder.json    its vocabulary and decoder only: nothing in it runs a pattern of the model's author

`text_files.py` writes them at registration. `Encoder` runs in separate processes
(`tokenmux.server.children.encoder_children`); `Decoder` in the front.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core

from tokenmux.core.errors import BadCheckpoint, InvalidRequest
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.text.template import TemplateInput, render

TEXT, ENCODER, DECODER = "text.json", "encoder.json", "decoder.json"
TEXT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TextFacts:
    """Facts about a model's text.

    `template` is None if there is no chat template; `template_refusal` says why one cannot be used;
    `in_parts` is true if it takes a message's content as a list of parts. `longest_token_chars` bounds how
    many characters one token stands for.
    """

    stop_token_ids: frozenset[int]
    longest_token_chars: int
    template: str | None
    template_refusal: str
    in_parts: bool
    special_tokens: Mapping[str, str]
    digest: str
    """Digest of encoder.json and of these facts: entries with the same digest encode alike."""
    tool_template: str | None = None
    """The template for conversations with tools, if it is another one."""
    splits_special_tokens: bool = False
    """True if the names of special tokens in a text are text like any other."""

    @property
    def can_chat(self) -> bool:
        return self.template is not None and not self.template_refusal

    @property
    def takes_tools(self) -> bool:
        """True if the chat template does something with tools."""
        return self.can_chat and "tools" in (self.template_for_tools or "")

    @property
    def template_for_tools(self) -> str | None:
        return self.tool_template or self.template

    def save(self, folder: Path) -> None:
        document = {
            "version": TEXT_VERSION,
            "stop_token_ids": sorted(self.stop_token_ids),
            "longest_token_chars": self.longest_token_chars,
            "template": self.template,
            "template_refusal": self.template_refusal,
            "in_parts": self.in_parts,
            "special_tokens": dict(self.special_tokens),
            "digest": self.digest,
            "tool_template": self.tool_template,
            "splits_special_tokens": self.splits_special_tokens,
        }
        (folder / TEXT).write_text(json.dumps(document, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TextFacts":
        """Read an entry's text.json. Raises BadCheckpoint if it is missing, damaged or of another version."""
        path = folder / TEXT
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            if document["version"] != TEXT_VERSION:
                raise BadCheckpoint(
                    f"{path}: version {document['version']}, not {TEXT_VERSION}; register the model again"
                )
            return cls(
                stop_token_ids=frozenset(int(token) for token in document["stop_token_ids"]),
                longest_token_chars=int(document["longest_token_chars"]),
                template=document["template"],
                template_refusal=str(document["template_refusal"]),
                in_parts=bool(document["in_parts"]),
                special_tokens={str(name): str(text) for name, text in document["special_tokens"].items()},
                digest=str(document["digest"]),
                tool_template=document.get("tool_template"),
                splits_special_tokens=bool(document.get("splits_special_tokens", False)),
            )
        except FileNotFoundError:
            raise BadCheckpoint(f"{path}: the file is missing; register the model again") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{path}: damaged ({error!r}); register the model again") from None


class Encoder:
    """Text and conversations to token ids. This runs what the model's author wrote: use it in a process
    that may be killed."""

    def __init__(self, core: Core, facts: TextFacts) -> None:
        core.encode_special_tokens = facts.splits_special_tokens
        self._core = core
        self._facts = facts

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """Read an entry's encoder. Raises BadCheckpoint."""
        return cls(load_core(folder / ENCODER), TextFacts.load(folder))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises InvalidRequest if the tokenizer cannot encode it."""
        with foreign_errors_as(
            lambda error: InvalidRequest(f"the model's tokenizer cannot encode this text ({error})")
        ):
            ids: list[int] = self._core.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_chat(
        self, messages: Sequence[Mapping[str, object]], given: TemplateInput | None = None
    ) -> list[int]:
        """Token ids of a conversation, each message with `role` and `content`, ready for the assistant's next
        turn, or for the rest of the last one.

        Raises InvalidRequest if there is no usable chat template, or if the template refuses the messages.
        """
        return self.encode(self.chat_text(messages, given), add_special_tokens=False)

    def chat_text(self, messages: Sequence[Mapping[str, object]], given: TemplateInput | None = None) -> str:
        """The conversation as the template formats it. Raises as `encode_chat`."""
        if not messages:
            raise InvalidRequest("a conversation needs at least one message")
        check_can_chat(self._facts)
        has_tools = given is not None and bool(given.tools)
        template = self._facts.template_for_tools if has_tools else self._facts.template
        assert template is not None
        with foreign_errors_as(
            lambda error: InvalidRequest(
                f"the model's chat template refuses these messages: {str(error) or type(error).__name__}"
            )
        ):
            return render(
                template,
                as_template_takes(messages, self._facts.in_parts),
                self._facts.special_tokens,
                given,
            )


def check_can_chat(facts: TextFacts) -> None:
    """Raise InvalidRequest if the model takes no conversations."""
    if facts.template is None:
        raise InvalidRequest("this model has no chat template; send a prompt as text or token ids")
    if facts.template_refusal:
        raise InvalidRequest(
            f"this model's chat template cannot be used ({facts.template_refusal}); send a prompt as "
            "text or token ids"
        )


def as_template_takes(messages: Iterable[Mapping[str, object]], in_parts: bool) -> list[dict[str, object]]:
    """Messages with their contents as text, or as lists of parts for templates that accept nothing else."""
    if not in_parts:
        return [dict(message) for message in messages]
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def load_core(path: Path) -> Core:
    """Load a tokenizer file. Raises BadCheckpoint if it is missing or damaged."""
    if not path.is_file():
        raise BadCheckpoint(f"{path}: the file is missing")
    with foreign_errors_as(lambda error: BadCheckpoint(f"{path}: the tokenizer cannot be read ({error})")):
        return Core.from_file(str(path))
