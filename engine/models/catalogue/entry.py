"""One model of the catalogue: where it is, what it is, and how the parts that run it are made.

What the front needs (facts, text) was written at registration, so opening an entry runs neither code of the
model's author nor modelling code, and imports neither torch nor transformers. `config` and `skeleton` do all
that; they are for executors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmux.core.errors import BadCheckpoint, NotFound
from tokenmux.core.facts import BLOCK_TOKENS, KvShape, ModelFacts, ModelId
from tokenmux.core.pooling import Embedding
from tokenmux.models.catalogue.fact_limits import check_facts
from tokenmux.models.catalogue.pooling_config import embedding_document, embedding_of_document
from tokenmux.models.json_files import read_object
from tokenmux.models.text.decoder import Decoder
from tokenmux.models.text.encoder import Encoder
from tokenmux.models.weights.manifest import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tokenmux.models.network.skeleton import Skeleton

MANIFEST, ENTRY, IMAGE = "manifest.json", "entry.json", "weights.image"
ENTRY_VERSION = 2
"""Version of entry.json: 2 added the facts."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue; see the module."""

    name: str
    path: Path
    facts: ModelFacts
    manifest: Manifest
    embedding: Embedding
    trust_remote_code: bool = False

    @classmethod
    def load(cls, path: Path, *, block_size: int = BLOCK_TOKENS) -> "Entry":
        """Read the entry in folder `path`. Raises NotFound or BadCheckpoint."""
        if not path.is_dir():
            raise NotFound(f"no model named {path.name} in the catalogue {path.parent}")
        manifest = Manifest.load(path / MANIFEST)
        said = read_object(path / ENTRY)
        facts = _facts(path, said, manifest, block_size)
        trust = bool(said.get("trust_remote_code", False))
        return cls(path.name, path, facts, manifest, _embedding(path, said), trust)

    @property
    def config(self) -> "PreTrainedConfig":
        """Read the model's config from its file. Raises as `load_model_config`; runs the author's code if
        that is trusted."""
        from tokenmux.models.config_file import load_model_config

        return load_model_config(self.path, trust_remote_code=self.trust_remote_code)

    def skeleton(self, *, packed: bool = False) -> "Skeleton":
        """The empty model of this entry, to be bound to its image; with `packed`, to an image that
        `Skeleton.pack` rearranged."""
        from tokenmux.models.network.skeleton import Skeleton

        return Skeleton(self.config, self.manifest, packed=packed, trust_remote_code=self.trust_remote_code)

    def encoder(self) -> Encoder:
        """Load what turns prompts into token ids: code and patterns of the model's author. Raises
        BadCheckpoint."""
        return Encoder.load(self.path)

    def tokenizer(self) -> Decoder:
        """Load what the front needs of this entry's tokenizer. Raises BadCheckpoint."""
        return Decoder.load(self.path)


def entry_document(facts: ModelFacts, embedding: Embedding, *, trust_remote_code: bool) -> dict[str, object]:
    """The content of entry.json."""
    return {
        "version": ENTRY_VERSION,
        "trust_remote_code": trust_remote_code,
        "facts": {
            "n_layers": facts.kv.n_layers,
            "n_kv_heads": facts.kv.n_kv_heads,
            "head_dim": facts.kv.head_dim,
            "max_context": facts.max_context,
            "n_parameters": facts.n_parameters,
            "vocab_size": facts.vocab_size,
        },
        "embedding": embedding_document(embedding),
    }


def is_current(path: Path) -> bool:
    """True if the entry in folder `path` was written by this version. Raises BadCheckpoint."""
    return read_object(path / ENTRY).get("version") == ENTRY_VERSION


def _embedding(path: Path, said: Mapping[str, Any]) -> Embedding:
    try:
        return embedding_of_document(said.get("embedding"))
    except (KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path / ENTRY}: damaged ({error!r}); register the model again") from None


def _facts(path: Path, said: Mapping[str, Any], manifest: Manifest, block_size: int) -> ModelFacts:
    if said.get("version") != ENTRY_VERSION:
        raise BadCheckpoint(
            f"{path}: registered by another version of tokenmux; unregister the model and register it again"
        )
    try:
        numbers: dict[str, Any] = said["facts"]
        shape = KvShape(
            numbers["n_layers"],
            numbers["n_kv_heads"],
            numbers["head_dim"],
            manifest.item_bytes,
            block_size,
        )
        facts = ModelFacts(
            id=ModelId(path.name),
            images=(manifest.image_of(path.name),),
            kv=shape,
            max_context=numbers["max_context"],
            n_parameters=numbers["n_parameters"],
            vocab_size=numbers["vocab_size"],
        )
        return check_facts(facts)
    except (KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path / ENTRY}: damaged ({error!r}); register the model again") from None
