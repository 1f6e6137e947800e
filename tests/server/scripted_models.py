"""Models of one letter a token, and a store that holds them."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tokenmux.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    InvalidRequest,
    NotFound,
    TokenmuxError,
)
from tokenmux.core.facts import Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.core.pooling import Embedding, NoPooling
from tokenmux.core.progress import Progress
from tokenmux.models.grammar.matchers import compile_grammar
from tokenmux.models.grammar.translation import source_of
from tokenmux.models.grammar.vocabulary import Vocabulary
from tokenmux.models.text.encoder import TextFacts
from tokenmux.models.text.tool_formats import schemas_of
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.generation import Chat, Constraint, Encodable, Text, Words

VOCAB = 256

END = 0

NO_POOLING = NoPooling("its checkpoint has no pooling")

CONTEXT = 64


def facts(name: str, n_bytes: int = 1000, max_context: int = CONTEXT) -> ModelFacts:
    return ModelFacts(
        id=ModelId(name),
        images=(Image(ImageId(f"{name}-image"), n_bytes),),
        kv=KvShape(n_layers=2, n_kv_heads=1, head_dim=8, dtype_bytes=2, block_size=16),
        max_context=max_context,
        n_parameters=500,
        vocab_size=VOCAB,
    )


class LetterDetokenizer:
    """Cuts at the first stop string and holds back what may become one."""

    def __init__(self, stop_strings: Sequence[str], width: int) -> None:
        self._stops = tuple(stop_strings)
        self._width = width
        self._held = ""
        self.stopped: str | None = None

    def push(self, token_ids: Sequence[int]) -> str:
        if self.stopped is not None:
            return ""
        self._held += "".join(chr(token_id) * self._width for token_id in token_ids)
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, self.stopped = min(found)
            text, self._held = self._held[:at], ""
            return text
        keep = max(
            (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )
        split = len(self._held) - keep
        text, self._held = self._held[:split], self._held[split:]
        return text

    def spell(self, token_id: int) -> bytes:
        return bytes((token_id,))

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text


@dataclass
class LetterTokenizer:
    """One token a letter, `width` letters a token on the way back."""

    has_chat_template: bool = True
    template: str = "letters"
    """Only looked at for the form of its calls: conversations are always formatted by `encode_chat`."""
    width: int = 1
    stop_token_ids: frozenset[int] = frozenset({END})
    gate: Callable[[], None] = lambda: None
    """Called in the tokenizer's thread."""

    @property
    def facts(self) -> TextFacts:
        template = self.template if self.has_chat_template else None
        return TextFacts(self.stop_token_ids, 100, template, "", False, {}, "letters")

    def encode(self, text: str) -> list[int]:
        self.gate()
        return [ord(letter) for letter in text]

    def encode_chat(self, chat: Chat) -> list[int]:
        """Each message as its role's first letter and its content, then the names of tools."""
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template; send a prompt as text or token ids")
        said = [f"{message.role[0]}:{message.content};" for message in chat.messages]
        names = [f"t:{name};" for name in schemas_of(chat.tools)]
        return self.encode("".join([*said, *names]))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in token_ids if token != END or not skip_special_tokens)

    def detokenizer(
        self, stop: Sequence[str], *, prompt: Sequence[int], skip_special_tokens: bool
    ) -> LetterDetokenizer:
        return LetterDetokenizer(stop, self.width)


class ThreadTexts:
    """Encodes with the tokenizers of fake entries, each prompt in a thread of its own that nothing waits
    for."""

    def __init__(self, entry: Callable[[str], "FakeEntry"]) -> None:
        self._entry = entry

    async def encode(self, model: str, path: Path, facts: TextFacts, prompt: Encodable) -> list[int]:
        letters = self._entry(model).letters
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[int]] = loop.create_future()

        def settle(ids: list[int] | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif ids is not None:
                answer.set_result(ids)

        def work() -> None:
            ids, failure = None, None
            try:
                if isinstance(prompt, Text):
                    ids = letters.encode(prompt.text)
                elif isinstance(prompt, Words):
                    ids = [n for text in prompt.texts for n in (len(text), *letters.encode(text))]
                else:
                    ids = letters.encode_chat(prompt)
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                failure = error
            with suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(settle, ids, failure)

        threading.Thread(target=work, daemon=True).start()
        return await answer

    def close(self) -> None:
        pass


@dataclass
class FakeEntry:
    facts: ModelFacts
    path: Path = Path("somewhere")
    letters: LetterTokenizer = field(default_factory=LetterTokenizer)
    embedding: Embedding = NO_POOLING

    def tokenizer(self) -> LetterTokenizer:
        return self.letters


class FakeCatalogue:
    """Any folder or file is a model; one whose name begins with "huge" is too large, with "bad" is
    damaged."""

    def __init__(self, *entries: FakeEntry) -> None:
        self.kept: dict[str, FakeEntry] = {entry.facts.id: entry for entry in entries}
        self.refuses_removal: TokenmuxError | None = None
        self.while_registering: Callable[[Progress, Cancellation], object] = lambda *_: None
        """Called in the thread that registers."""

    def __getitem__(self, name: str) -> FakeEntry:
        return self.kept[name]

    def names(self) -> list[str]:
        return sorted(self.kept)

    def get(self, name: str) -> FakeEntry:
        if name not in self.kept:
            raise NotFound(f"no model named {name} in the catalogue")
        if name.startswith("bad"):
            raise BadCheckpoint(f"{name}: the manifest is damaged")
        return self.kept[name]

    def register_folder(
        self, name: str, folder: Path, *, progress: Progress, cancellation: Cancellation
    ) -> FakeEntry:
        if name in self.kept:
            raise AlreadyExists(name)
        self.while_registering(progress, cancellation)
        entry = FakeEntry(facts(name, n_bytes=10**9 if folder.name.startswith("huge") else 1000))
        self.kept[name] = entry
        return entry

    def register_gguf(
        self, name: str, file: Path, *, progress: Progress, cancellation: Cancellation
    ) -> FakeEntry:
        return self.register_folder(name, file, progress=progress, cancellation=cancellation)

    def set_aside(self, name: str) -> "FakeAside":
        if self.refuses_removal is not None:
            raise self.refuses_removal
        if name not in self.kept:
            raise NotFound(name)
        return FakeAside(self, self.kept.pop(name))

    def remove(self, name: str) -> None:
        self.set_aside(name).delete()


@dataclass
class FakeAside:
    catalogue: FakeCatalogue
    entry: FakeEntry

    def restore(self) -> None:
        self.catalogue.kept[self.entry.facts.id] = self.entry

    def delete(self) -> None:
        pass


class LoopGrammars:
    """Reads constraints at once, on the event loop: those of tests are small."""

    async def read(self, constraint: Constraint) -> Grammar:
        try:
            source = source_of(constraint.kind, constraint.text)
            compile_grammar(Vocabulary.of_bytes(), source)
            return Grammar.of(source)
        except InvalidRequest as error:
            said = f"{constraint.title} cannot be used: {error}"
            raise InvalidRequest(said, field="constraint") from None

    def close(self) -> None:
        pass
